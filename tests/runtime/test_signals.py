"""A signal during training ends it after the step that it came in; the next run goes on there."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from tiny import CPU, ROOT, find_task
from torch import Tensor, nn

from filbert.data.batches import Batch, TokenizedDataset
from filbert.models import checkpoints
from filbert.runtime import signals
from filbert.tracking.run_recorder import RunRecorder, stage_run
from filbert.training import losses
from filbert.training.loop import TrainingConfig, fit

CONFIG = TrainingConfig(epochs=2, batch_size=8, learning_rate=1e-3, warmup=0.1, decay="linear", weight_decay=0.01,
                        gradient_clip=1.0, validations=0, patience=1)  # fmt: skip
SIGNALLED = 5  # the step


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a stage answers signals; afterwards as pytest does."""
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    monkeypatch.setattr(signals, "_received", None)
    signals.install()
    yield
    for number, answer in before.items():
        signal.signal(number, answer)


def train(
    checkpoint: Path, rows: TokenizedDataset, recorder: RunRecorder, scratch: str, at: int
) -> tuple[nn.Module, list[int]]:
    """The model, and the steps that were made; at one of them SIGTERM comes, twice."""
    torch.manual_seed(1)
    model, steps = checkpoints.new_student(checkpoint, find_task("sst2"), checkpoints.StudentConfig((0,))), [0]

    def loss(batch: Batch) -> Tensor:
        steps[0] += 1
        for _ in range(2 * (steps[0] == at)):
            os.kill(os.getpid(), signal.SIGTERM)
        return losses.cross_entropy(checkpoints.forward_batch(model, batch).logits, batch.label)

    fit(model, loss, rows, dict, CONFIG, phase="p", seed=1, device=CPU, scratch=Path(scratch), recorder=recorder)
    return model, steps


def test_the_step_is_finished_and_saved(
    checkpoint: Path, encoded: TokenizedDataset, recorder: RunRecorder, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(signals.Stopped) as stopped:
        train(checkpoint, encoded, recorder, "stopped", SIGNALLED)
    assert stopped.value.code == 143
    monkeypatch.setattr(signals, "_received", None)
    resumed, left = train(checkpoint, encoded, recorder, "stopped", -1)
    whole, steps = train(checkpoint, encoded, recorder, "whole", -1)
    assert left[0] == steps[0] - SIGNALLED
    for one, other in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other)


TWO_AT_ONCE = """
import os, signal
from filbert.runtime import signals
signals.install()
signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
for number in signals.SIGNALS:
    os.kill(os.getpid(), number)
try:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
except signals.Stopped as stopped:
    print(stopped, sum(range(9)))
"""


def test_two_signals_at_once_stop_once_and_say_nothing_else() -> None:
    """Ctrl-C reaches a stage from the terminal, and the flow that runs it sends SIGTERM."""
    done = subprocess.run([sys.executable, "-c", TWO_AT_ONCE], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("130 36\n", "")


@pytest.mark.parametrize(("call", "status"), [("create_run", "KILLED"), ("set_terminated", "FINISHED")])
def test_no_run_of_mlflow_stays_running(
    call: str, status: str, store: Path, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM comes when the run is in the store and the stage does not know it yet, or just before it is ended there."""
    answer = getattr(mlflow.MlflowClient, call)

    def signalled(*words: Any, **more: Any) -> Any:
        if call == "set_terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        found = answer(*words, **more)
        if more.get("tags", {}).get("stage") == "teach":
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(mlflow.MlflowClient, call, signalled)
    with pytest.raises(signals.Stopped), teaching():
        pass
    found = mlflow.search_runs(experiment_names=["filbert"], output_format="list")
    assert [run.info.status for run in found if run.data.tags["stage"] == "teach"] == [status]


def test_a_call_of_mlflow_is_not_torn(store: Path, installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal waits for its end: a transaction that is torn may keep its database locked, and the run RUNNING."""
    answer, running = mlflow.MlflowClient.log_batch, []

    def signalled(*words: Any, **more: Any) -> None:
        running.append(more)
        os.kill(os.getpid(), signal.SIGTERM)
        answer(*words, **more)
        running.remove(more)

    def stage() -> None:
        with teaching() as recorder:
            monkeypatch.setattr(mlflow.MlflowClient, "log_batch", signalled)
            recorder.view.next_attempt = 0.0
            recorder.log("train", 1, {"loss": 0.5})

    with pytest.raises(signals.Stopped):
        stage()
    assert not running
    run = next(
        run for run in mlflow.search_runs(experiment_names=["filbert"], output_format="list") if run.data.metrics
    )
    assert (run.info.status, run.data.metrics) == ("KILLED", {"train/loss": 0.5})


def teaching() -> AbstractContextManager[RunRecorder]:
    return stage_run("teach", params={}, tags={"task": "t"}, hashes={}, scratch=Path(".scratch/x"))
