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

from filbert import compared
from filbert.files import FIRST
from filbert.runs import Point, Record, now
from filbert.view import View


class Recorder:
    """Where a stage says what it measures."""

    def __init__(self, history: Path, view: View, made_with: dict[str, Any]):
        self.history, self.view, self.made_with = history, view, made_with
        history.parent.mkdir(parents=True, exist_ok=True)

    def log(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Append one line to the history and, in batches, one point per value to MLflow."""
        line = {"phase": phase, "step": step, "time": round(time.time(), 3), **values}
        with self.history.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self.view.points(points_of(line))

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
        self.view.points([(name, float(v), at, 0) for name, v in flat(values).items() if isinstance(v, int | float)])

    def student(self, shape: dict[str, Any], figures: dict[str, Any]) -> None:
        """A student that was made or measured: its shape, as `measure.shape` tells it, and final figures."""
        self.view.params(compared.shape(shape))
        self.metrics(figures)

    def dataset(self, table: pa.Table, source: Path, context: str) -> None:
        """The rows a stage reads, as an MLflow input."""
        self.view.dataset(table, source, self.made_with["task"], self.made_with["rows"], context)

    def model(self, model: Any, tokenizer: Any) -> None:
        """A trained model as an MLflow model of the transformers flavour, with a signature."""
        self.view.model(model, tokenizer)

    def runs(self, records: Iterable[Record]) -> None:
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
) -> Iterator[Recorder]:
    """One stage as an MLflow run, and its history in `scratch`.

    `params` are the settings it was given (dataclasses allowed as values), `tags` say what it works on and name the
    run, `hashes` identify what it read, `of` is what the model that it measures was made with. A stage that was killed and
    starts again goes on in the same run.
    """
    settings = json.loads(json.dumps(flat(params)))
    worked_on = {"stage": stage, **tags, **hashes}
    made_with = worked_on | settings
    key = compared.identity(made_with) if of is None else compared.identity(stage, tags, of)
    shown = settings | tags | compared.training(of or made_with)
    view = View("/".join([stage, *tags.values()]), key, worked_on, shown, made_with, scratch / "mlflow_run.json")
    if of is not None:
        view.about(compared.identity(of))
    try:
        yield Recorder(scratch / "history.jsonl" if FIRST else Path(os.devnull), view, made_with)
    except BaseException:
        view.end("FAILED")
        raise
    view.end("FINISHED")


def read_history(file: Path) -> list[dict[str, Any]]:
    """The lines of a history.jsonl; a last line cut off by a kill is left out."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def points_of(line: dict[str, Any]) -> list[Point]:
    """One point for each value of a line of the history."""
    values = ((name, v) for name, v in line.items() if name not in ("phase", "step", "time"))
    at, step = round(1000 * line["time"]), line["step"]
    return [(f"{line['phase']}/{name}", float(v), at, step) for name, v in values]


def steps(file: Path) -> int:
    """How many optimiser steps a history tells of, all phases together."""
    last: dict[str, int] = {}
    for line in read_history(file):
        last[line["phase"]] = max(line["step"], last.get(line["phase"], 0))
    return sum(last.values())


def curve(file: Path) -> list[dict[str, Any]]:
    """The validation scores a history tells of: phase, step, score."""
    scored = (line for line in read_history(file) if "validation_score" in line)
    return [{"phase": line["phase"], "step": line["step"], "score": line["validation_score"]} for line in scored]


def last(file: Path, phase: str) -> dict[str, float]:
    """The last values a history tells of a phase; empty where it tells none."""
    lines = [line for line in read_history(file) if line["phase"] == phase]
    return {k: v for k, v in lines[-1].items() if k not in ("phase", "step", "time")} if lines else {}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a/b': 1}; a dataclass counts as the dict of its fields."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        value = asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
        out |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out
