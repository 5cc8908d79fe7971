"""history.jsonl is the record, MLflow the view: every stage writes both while it runs."""

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

from filbert.runtime.files import IS_MAIN_PROCESS
from filbert.tracking import run_fields
from filbert.tracking.history import history_points, read_history
from filbert.tracking.mlflow_run import MlflowRun
from filbert.tracking.mlflow_store import RunRecord, now


class RunRecorder:
    """Where a stage says what it measures."""

    def __init__(self, history: Path, view: MlflowRun, provenance: dict[str, Any]):
        self.history, self.view, self.provenance = history, view, provenance
        history.parent.mkdir(parents=True, exist_ok=True)

    def log(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Append one line to the history and, in batches, one point per value to MLflow."""
        line = {"phase": phase, "step": step, "time": round(time.time(), 3), **values}
        with self.history.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self.view.points(history_points(line))

    def rewind(self, phase: str, step: int, end: float = math.inf) -> None:
        """Forget what was written of `phase` after `step`, up to `end`: a resumed phase says it again."""
        lines = read_history(self.history) if self.history.exists() else []
        kept = [line for line in lines if line["phase"] != phase or not step < line["step"] <= end]
        self.history.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def inherit(self, history: Path, name: str) -> None:
        """Begin with what an earlier student's history tells, its phases named after it: its steps count."""
        if not self.history.exists():
            lines = ({**line, "phase": f"{name}/{line['phase']}"} for line in read_history(history))
            self.history.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def metrics(self, values: dict[str, Any]) -> None:
        """Final figures of the stage, nested names joined by `/`."""
        at = now()
        self.view.points([(name, float(v), at, 0) for name, v in flatten(values).items() if isinstance(v, int | float)])

    def student(self, shape: dict[str, Any], figures: dict[str, Any]) -> None:
        """A student that was made or measured: its shape, as `measure.shape` tells it, and final figures."""
        self.view.params(run_fields.shape_fields(shape))
        self.metrics(figures)

    def dataset(self, table: pa.Table, source: Path, context: str) -> None:
        """The rows a stage reads, as an MLflow input."""
        self.view.dataset(table, source, self.provenance["task"], self.provenance["rows"], context)

    def model(self, model: Any, tokenizer: Any) -> None:
        """A trained model as an MLflow model of the transformers flavour, with a signature."""
        self.view.model(model, tokenizer)

    def runs(self, records: Iterable[RunRecord]) -> None:
        """Runs beside the stage's own, such as the aggregates of seeds."""
        self.view.write(records)


@contextmanager
def stage_run(
    stage: str,
    *,
    params: dict[str, Any],
    tags: dict[str, str],
    hashes: dict[str, str],
    scratch: Path,
    of: dict[str, Any] | None = None,
) -> Iterator[RunRecorder]:
    """One stage as an MLflow run, and its history in `scratch`.

    `params` are the settings it was given (dataclasses allowed as values), `tags` say what it works on and name the
    run, `hashes` identify what it read, `of` is what the model that it measures was made with. A stage that was killed and
    starts again goes on in the same run.
    """
    settings = json.loads(json.dumps(flatten(params)))
    worked_on = {"stage": stage, **tags, **hashes}
    provenance = worked_on | settings
    key = run_fields.run_key(provenance) if of is None else run_fields.run_key(stage, tags, of)
    shown = settings | tags | run_fields.training_fields(of or provenance)
    view = MlflowRun("/".join([stage, *tags.values()]), key, worked_on, shown, provenance, scratch / "mlflow_run.json")
    if of is not None:
        view.about(run_fields.run_key(of))
    try:
        yield RunRecorder(scratch / "history.jsonl" if IS_MAIN_PROCESS else Path(os.devnull), view, provenance)
    except BaseException:
        view.end("FAILED")
        raise
    view.end("FINISHED")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a/b': 1}; a dataclass counts as the dict of its fields."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        value = asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
        out |= flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out
