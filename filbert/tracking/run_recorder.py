"""What a stage records while it runs: lines of history.jsonl, mirrored to MLflow."""

import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from filbert.runtime import signals
from filbert.runtime.files import IS_MAIN_PROCESS, write_text
from filbert.runtime.secrets import without_password
from filbert.tracking import run_fields
from filbert.tracking.history import history_points, read_history, to_text
from filbert.tracking.mlflow_run import MlflowRun
from filbert.tracking.mlflow_store import RunRecord, now


class RunRecorder:
    """Records what a stage measures."""

    def __init__(self, history: Path, view: MlflowRun, provenance: dict[str, Any]):
        self.history, self.view, self.provenance = history, view, provenance
        history.parent.mkdir(parents=True, exist_ok=True)

    def log(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Append a line to the history; MLflow gets a point per value, in batches."""
        line = {"phase": phase, "step": step, "time": round(time.time(), 3), **values}
        with self.history.open("a", encoding="utf-8") as stream:
            stream.write(to_text([line]))
        self.view.points(history_points(line))

    def rewind(self, phase: str, step: int, end: float = math.inf, first: bool = False) -> None:
        """Remove the lines of `phase` after `step`, up to `end`: a resumed phase logs them again; with `first` the scores at `step`
        as well, which a phase that begins there logs. A history begins here."""

        def again(line: dict[str, Any]) -> bool:
            return step < line["step"] <= end or (first and line["step"] == step and "epoch" in line)

        if IS_MAIN_PROCESS:
            lines = read_history(self.history) if self.history.exists() else []
            write_text(self.history, to_text([x for x in lines if x["phase"] != phase or not again(x)]))

    def last_step(self, phase: str) -> int:
        """The last step of a phase that the history tells of; 0 where it tells of none."""
        lines = read_history(self.history) if self.history.exists() else []
        return max((line["step"] for line in lines if line["phase"] == phase), default=0)

    def inherit(self, history: Path, name: str) -> None:
        """Begin with the history of the student that this one starts from, its phases under `name/`: its steps count."""
        if IS_MAIN_PROCESS and not self.history.exists():
            lines = [{**line, "phase": f"{name}/{line['phase']}"} for line in read_history(history)]
            write_text(self.history, to_text(lines))

    def metrics(self, values: dict[str, Any]) -> None:
        """Log final figures of the stage, nested names joined by `/`."""
        time, numbers = now(), {name: v for name, v in flatten(values).items() if isinstance(v, int | float)}
        self.view.points([(name, float(v), time, 0) for name, v in numbers.items()])

    def student(self, shape: dict[str, Any], figures: dict[str, Any]) -> None:
        """Log the shape of a student (models.size.model_shape) and its final figures."""
        self.view.params(run_fields.shape_fields(shape))
        self.metrics(figures)

    def dataset(self, table: pa.Table, source: Path, context: str) -> None:
        """Log the rows that a stage reads, as an MLflow input."""
        self.view.dataset(table, source, self.provenance["task"], self.provenance["rows"], context)

    def model(self, model: Any, tokenizer: Any) -> None:
        """Log a trained model as an MLflow model of the transformers flavour, with a signature."""
        self.view.model(model, tokenizer)

    def runs(self, records: Iterable[RunRecord]) -> None:
        """Write runs other than the stage's own, such as the aggregates of seeds."""
        self.view.write(records)


@contextmanager
def stage_run(
    stage: str,
    *,
    params: dict[str, Any],
    tags: dict[str, str],
    hashes: dict[str, str],
    scratch: Path,
    measures: dict[str, Any] | None = None,
) -> Iterator[RunRecorder]:
    """One stage as an MLflow run, and its history in `scratch`.

    `params` are its settings (dataclasses allowed as values), `tags` name the run and its inputs, `hashes` identify what it
    read, `measures` is the provenance of the model that it measures. A stage that was killed resumes the same run.
    """
    settings = json.loads(json.dumps(flatten(params)))
    inputs = {"stage": stage, **tags, **hashes}
    assert not inputs.keys() & settings.keys(), "a setting would hide an input of the same name"
    provenance = inputs | settings
    key = run_fields.run_key(provenance) if measures is None else run_fields.run_key(stage, tags, measures)
    shown = settings | tags | run_fields.training_fields(measures or provenance)
    with signals.held():  # a run that is half begun, or half ended, would stay RUNNING
        view = MlflowRun("/".join([stage, *tags.values()]), key, inputs, shown, provenance, scratch / "mlflow_run.json")
        try:
            with signals.answered():
                if measures is not None:
                    view.link_model(run_fields.run_key(measures))
                yield RunRecorder(scratch / "history.jsonl" if IS_MAIN_PROCESS else Path(os.devnull), view, provenance)
        except BaseException as error:
            view.end("KILLED" if isinstance(error, signals.Stopped | KeyboardInterrupt) else "FAILED")
            raise
        view.end("FINISHED")
    signals.raise_received()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a/b': 1}; a dataclass counts as the dict of its fields. Texts are without passwords."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        value = asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
        shown = without_password(value) if isinstance(value, str) else value
        out |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": shown}
    return out
