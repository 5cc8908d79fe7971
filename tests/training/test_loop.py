"""The training loop repeats bit for bit, also over a kill, and learns."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import find_task
from torch import Tensor, nn

from filbert.data import batches
from filbert.methods import rosita
from filbert.models import checkpoints
from filbert.tracking.history import count_steps, read_history, step_budget
from filbert.tracking.run_recorder import RunRecorder
from filbert.training import losses
from filbert.training.loop import (
    TrainingConfig,
    TrainingError,
    TrainingResult,
    fit,
    stretched_phases,
    total_steps,
    validate,
)
from stages.teach import TeacherConfig

SST2, CPU = find_task("sst2"), torch.device("cpu")
CONFIG = TrainingConfig(epochs=3, batch_size=8, learning_rate=1e-3, warmup=0.1, decay="linear", weight_decay=0.01,
                        gradient_clip=1.0, validations=6, patience=6)  # fmt: skip


class Killed(BaseException):
    """The process dies here."""


def train(
    checkpoint: Path, train: batches.TokenizedDataset, validation: batches.TokenizedDataset, recorder: RunRecorder,
    config: TrainingConfig = CONFIG,
    seed: int = 1, die_at: int = -1, every: float = 1e9, scratch: str = "scratch",
) -> tuple[nn.Module, TrainingResult]:  # fmt: skip
    torch.manual_seed(seed)
    model, step = checkpoints.new_student(checkpoint, SST2, checkpoints.StudentConfig((0, 1))), 0

    def loss(batch: batches.Batch) -> Tensor:
        nonlocal step
        step += 1
        if step == die_at:
            raise Killed
        return losses.cross_entropy(checkpoints.forward_batch(model, batch).logits, batch.label)

    score: Callable[[], dict[str, float]] = lambda: validate(model, SST2, validation, CPU)  # noqa: E731
    fitted = fit(model, loss, train, score, config, phase="p", seed=seed, device=CPU, scratch=Path(scratch),
                 recorder=recorder, checkpoint_seconds=every)  # fmt: skip
    return model, fitted


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def curve(recorder: RunRecorder) -> list[tuple[int, float | None, float | None]]:
    return [(line["step"], line.get("loss"), line.get("validation_score")) for line in read_history(recorder.history)]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(checkpoint, encoded, validation, recorder) -> None:  # type: ignore[no-untyped-def]
    runs = [train(checkpoint, encoded, validation, recorder, seed=s, scratch=f"s{i}") for i, s in enumerate((1, 1, 2))]
    assert same(runs[0][0], runs[1][0])
    assert not same(runs[0][0], runs[2][0])


@pytest.mark.parametrize("tokens", [None, 60])
def test_a_killed_run_ends_as_if_it_had_not_been(  # type: ignore[no-untyped-def]
    checkpoint, encoded, validation, recorder, tokens: int | None
) -> None:
    config = replace(CONFIG, batch_tokens=tokens)
    whole, fitted = train(checkpoint, encoded, validation, recorder, config)
    history = curve(recorder)
    for die_at in (2, 9, 12, 27):
        recorder.history.unlink()
        again = {"scratch": f"killed-{die_at}"}
        with pytest.raises(Killed):
            train(checkpoint, encoded, validation, recorder, config, die_at=die_at, every=0, **again)
        resumed, second = train(
            checkpoint, encoded, validation, recorder, config, die_at=fitted.steps - die_at + 3, **again
        )
        assert same(whole, resumed)
        assert second == fitted
        assert curve(recorder) == history
        done, third = train(
            checkpoint, encoded, validation, recorder, config, die_at=1, **again
        )  # a finished phase is not run
        assert same(done, whole)
        assert third == fitted


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "rubbish"])
def test_a_damaged_checkpoint_is_set_aside_and_the_phase_begins_anew(  # type: ignore[no-untyped-def]
    checkpoint, encoded, validation, recorder, capsys, damage: str
) -> None:
    with pytest.raises(Killed):
        train(checkpoint, encoded, validation, recorder, die_at=9, every=0)
    file = Path("scratch/p-0.safetensors")
    whole = file.read_bytes()
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    file.write_bytes({"cut": whole[:-200], "flipped": flipped, "empty": b"", "rubbish": b"not a checkpoint"}[damage])
    resumed, _ = train(checkpoint, encoded, validation, recorder)
    fresh, _ = train(checkpoint, encoded, validation, recorder, scratch="fresh")
    assert same(resumed, fresh)
    assert "damaged (" in (said := capsys.readouterr().err)
    assert "renamed to p-0.damaged, beginning anew" in said
    assert Path("scratch/p-0.damaged").exists()


@pytest.mark.parametrize("lost", ["the last line", "its end"])
def test_a_history_is_whole_whatever_is_lost_of_it(
    checkpoint, encoded, validation, recorder, monkeypatch, lost: str
) -> None:  # type: ignore[no-untyped-def]
    """The process dies as it is to write the last line; or the disk lost what came after the first step that was told."""
    whole, _ = train(checkpoint, encoded, validation, recorder)
    lines, log = curve(recorder), recorder.log
    recorder.history.unlink()

    def dies_at_the_end(phase: str, step: int, values: dict[str, float]) -> None:
        if "best" in values:
            raise Killed
        log(phase, step, values)

    monkeypatch.setattr(recorder, "log", dies_at_the_end)
    with pytest.raises(Killed):
        train(checkpoint, encoded, validation, recorder, every=0, scratch="killed")
    monkeypatch.setattr(recorder, "log", log)
    if lost == "its end":
        recorder.history.write_text("".join(recorder.history.read_text().splitlines(keepends=True)[:1]))
    resumed, _ = train(checkpoint, encoded, validation, recorder, scratch="killed")
    assert same(whole, resumed)
    assert curve(recorder) == lines


def test_a_checkpoint_of_other_settings_is_not_resumed(checkpoint, encoded, validation, recorder) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Killed):
        train(checkpoint, encoded, validation, recorder, die_at=9, every=0)
    changed = replace(CONFIG, learning_rate=2e-3)
    resumed, _ = train(checkpoint, encoded, validation, recorder, config=changed)
    fresh, _ = train(checkpoint, encoded, validation, recorder, config=changed, scratch="fresh")
    assert same(resumed, fresh)


def test_a_checkpoint_of_a_stage_with_other_settings_is_not_resumed(
    checkpoint, encoded, validation, recorder, capsys
) -> None:  # type: ignore[no-untyped-def]
    """What a loss closes over (a temperature, the teacher's words) is in the recorder's `provenance`."""
    for soft in (0.9, 0.1):
        recorder.provenance = {"soft": soft, "teacher": "abc"}
        with pytest.raises(Killed):
            train(checkpoint, encoded, validation, recorder, die_at=9, every=0)
    assert "made with other settings, data or start; beginning anew" in capsys.readouterr().err


def test_windows_go_on_with_the_rows_and_learning_rates_of_the_whole(checkpoint, encoded, validation, recorder) -> None:  # type: ignore[no-untyped-def]
    seen: list[tuple[int, ...]] = []

    def run(name: str, *windows: tuple[int, int] | None) -> list[tuple[int, ...]]:
        seen.clear()
        model = checkpoints.new_student(checkpoint, SST2, checkpoints.StudentConfig((0,)))

        def loss(batch: batches.Batch) -> Tensor:
            seen.append(tuple(batch.ids.sum(1).tolist()))
            return losses.cross_entropy(checkpoints.forward_batch(model, batch).logits, batch.label)

        for window in windows:
            fit(model, loss, encoded, dict, replace(CONFIG, validations=0), phase=name, seed=1, device=CPU, scratch=Path("w"),
                recorder=recorder, step_range=window)  # fmt: skip
        return list(seen)

    assert run("whole", None) == run("parts", (0, 4), (4, 13), (13, 27))
    lines = read_history(recorder.history)
    rates = {
        p: {line["step"]: line["learning_rate"] for line in lines if line["phase"] == p} for p in ("whole", "parts")
    }
    assert rates["whole"].items() <= rates["parts"].items()
    assert count_steps(recorder.history) == 2 * 27


def test_it_learns_and_keeps_the_best_weights(checkpoint, encoded, validation, recorder) -> None:  # type: ignore[no-untyped-def]
    model, fitted = train(checkpoint, encoded, validation, recorder, replace(CONFIG, epochs=12, learning_rate=5e-3))
    scores = [score for _, _, score in curve(recorder) if score is not None]
    assert fitted.best == max(scores) >= 0.9  # the adjective says the label
    assert validate(model, SST2, validation, CPU)["score"] == fitted.best


@pytest.mark.parametrize(("classes", "steps"), [(1, 27), (2, 10)])
def test_it_stops_early_but_not_while_it_predicts_one_class(
    checkpoint, encoded, recorder, classes: int, steps: int
) -> None:  # type: ignore[no-untyped-def]
    model = checkpoints.new_teacher(checkpoint, SST2)

    def loss(batch: batches.Batch) -> Tensor:
        return losses.cross_entropy(checkpoints.forward_batch(model, batch).logits, batch.label)

    fitted = fit(
        model, loss, encoded, lambda: {"score": 0.5, "classes": classes}, replace(CONFIG, patience=2), phase="train",
        seed=1, device=CPU, scratch=Path("scratch"), recorder=recorder,
    )  # fmt: skip
    assert (fitted.best_step, fitted.steps) == (
        0,
        steps,
    )  # nothing is better than the start; a validation each 5 steps of 27
    assert (count_steps(recorder.history), step_budget(recorder.history)) == (steps, 27)


def test_a_phase_that_finds_nothing_better_keeps_what_it_started_from(
    checkpoint, encoded, validation, recorder
) -> None:  # type: ignore[no-untyped-def]
    model, _ = train(checkpoint, encoded, validation, recorder, replace(CONFIG, epochs=12, learning_rate=5e-3))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def worse(batch: batches.Batch) -> Tensor:
        return losses.cross_entropy(checkpoints.forward_batch(model, batch).logits, 1 - batch.label)

    score: Callable[[], dict[str, float]] = lambda: validate(model, SST2, validation, CPU)  # noqa: E731
    fitted = fit(
        model, worse, encoded, score, CONFIG, phase="more", seed=1, device=CPU, scratch=Path("more"), recorder=recorder
    )
    assert fitted.best_step == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_start_is_judged_once_also_where_a_phase_begins_again(checkpoint, encoded, validation, recorder) -> None:  # type: ignore[no-untyped-def]
    for die_at in (2, 3, -1):  # killed before its first checkpoint, begun anew, killed, ended
        if die_at > 0:
            with pytest.raises(Killed):
                train(checkpoint, encoded, validation, recorder, die_at=die_at)
        else:
            train(checkpoint, encoded, validation, recorder)
    assert [step for step, _, score in curve(recorder) if score is not None] == [0, 5, 10, 15, 20, 25, 27]


def test_a_start_that_is_not_judged_is_never_the_best(checkpoint, encoded, recorder) -> None:  # type: ignore[no-untyped-def]
    model, scores = checkpoints.new_teacher(checkpoint, SST2), iter((0.9, 0.5, 0.4, 0.3))

    def loss(batch: batches.Batch) -> Tensor:
        return losses.cross_entropy(checkpoints.forward_batch(model, batch).logits, batch.label)

    fitted = fit(
        model, loss, encoded, lambda: {"score": next(scores)}, replace(CONFIG, validations=3), phase="train", seed=1,
        device=CPU, scratch=Path("scratch"), recorder=recorder, validate_start=False,
    )  # fmt: skip
    assert (fitted.best, fitted.best_step) == (0.9, 9)
    assert [step for step, _, score in curve(recorder) if score is not None] == [9, 18, 27]


def test_a_range_is_judged_where_it_begins_and_the_line_before_it_stays(
    checkpoint, encoded, validation, recorder
) -> None:  # type: ignore[no-untyped-def]
    model = checkpoints.new_student(checkpoint, SST2, checkpoints.StudentConfig((0,)))

    def loss(batch: batches.Batch) -> Tensor:
        return losses.cross_entropy(checkpoints.forward_batch(model, batch).logits, batch.label)

    score: Callable[[], dict[str, float]] = lambda: validate(model, SST2, validation, CPU)  # noqa: E731
    for steps, validations in (((0, 10), 0), ((10, 27), 1)):
        fit(model, loss, encoded, score, replace(CONFIG, validations=validations), phase="p", seed=1, device=CPU,
            scratch=Path("s"), recorder=recorder, step_range=steps)  # fmt: skip
    assert [(s, loss is not None) for s, loss, _ in curve(recorder) if s == 10] == [(10, True), (10, False)]
    assert [step for step, _, score in curve(recorder) if score is not None] == [10, 27]


@pytest.mark.parametrize(
    ("epochs", "floor", "budget", "steps"),
    [(2, 0, None, 18), (2, 30, None, 30), (2, 5, None, 18), (2, 0, 10, 10), (2, 30, 10, 10), (0, 30, None, 0)],
)
def test_a_phase_has_a_floor_and_a_budget(epochs: int, floor: int, budget: int | None, steps: int) -> None:
    config = replace(CONFIG, epochs=epochs, min_steps=floor, max_steps=budget)
    assert total_steps(range(72), config) == steps
    assert total_steps(range(72), config.stretched(3.0)) == 3 * steps


def test_a_first_look_shortens_every_phase_of_a_method() -> None:
    settings = TeacherConfig((1,), replace(CONFIG, min_steps=100))
    phases = rosita.IterativeConfig(0.5, None, 0, True, CONFIG)
    assert stretched_phases(settings, 0.25).training == replace(CONFIG, epochs=0.75, min_steps=25, validations=2)
    assert stretched_phases(phases, 0.5) == replace(phases, training=replace(CONFIG, epochs=1.5, validations=3))


def test_batches_may_be_of_so_many_tokens(checkpoint, encoded, validation, recorder, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """As many of them in each epoch, so that floor, budget, learning rate and a resumed epoch are what they are of rows."""
    seen: list[tuple[int, ...]] = []
    batch = batches.TokenizedDataset.batch

    def noted(rows: batches.TokenizedDataset, at: np.ndarray) -> batches.Batch:
        seen.append(tuple(at.tolist())) if rows is encoded else None
        return batch(rows, at)

    monkeypatch.setattr(batches.TokenizedDataset, "batch", noted)
    config = replace(CONFIG, batch_tokens=60, patience=99)
    _, fitted = train(checkpoint, encoded, validation, recorder, config)
    assert fitted.steps == len(seen) == total_steps(encoded, config)
    size = fitted.steps // 3
    for epoch in (seen[:size], seen[size : 2 * size], seen[2 * size :]):
        assert sorted(i for rows in epoch for i in rows) == list(range(len(encoded)))
        assert all(len(rows) * encoded.lengths[list(rows)].max() <= 60 for rows in epoch)
    assert set(seen[:size]) != set(seen[size : 2 * size])


def test_a_phase_under_its_floor_goes_through_its_rows_again(checkpoint, encoded, validation, recorder) -> None:  # type: ignore[no-untyped-def]
    _, fitted = train(checkpoint, encoded, validation, recorder, replace(CONFIG, epochs=1, min_steps=20))
    assert fitted.steps == 20
    assert next(line["learning_rate"] for line in read_history(recorder.history) if line["step"] == 20) < 1e-3 / 15


def test_a_loss_that_explodes_is_named(checkpoint, encoded, validation, recorder) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TrainingError, match=r"p: the loss became nan at step 10 of 27.*lower `learning_rate`"):
        train(checkpoint, encoded, validation, recorder, replace(CONFIG, learning_rate=1e30))
