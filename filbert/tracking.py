"""history.jsonl is the record, MLflow the view: every stage writes both while it runs.

A stage is an MLflow run nested under one run per pipeline run. Losing MLflow never stops a stage or loses a figure: when
it cannot be reached the view is given up with a warning, and the files stay the truth. This is the one module that
imports mlflow.
"""

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from filelock import FileLock

from filbert.files import SCRATCH, read_json, write_json

for _name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_LOGGING_LEVEL", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, {"MLFLOW_LOGGING_LEVEL": "WARNING"}.get(_name, "true"))

EXPERIMENT = "filbert"
STORE = Path("mlflow.db")
FLUSH_SECONDS = 5.0
MOST_FAILURES = 3  # in a row, before the view is given up
PIPELINE_TAG = "filbert.pipeline"


class Recorder:
    """Where a stage says what it measures."""

    def __init__(self, history: Path, view: "View", made_with: dict[str, Any]):
        self.history, self.view, self.made_with = history, view, made_with
        history.parent.mkdir(parents=True, exist_ok=True)

    def log(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Append one line to the history and, in batches, one point per value to MLflow."""
        line = {"phase": phase, "step": step, "time": round(time.time(), 3), **values}
        with self.history.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self.view.point({f"{phase}/{name}": value for name, value in values.items()}, step)

    def rewind(self, phase: str, step: int) -> None:
        """Forget what was written of `phase` after `step`: a resumed phase says it again."""
        lines = read_history(self.history) if self.history.exists() else []
        kept = [line for line in lines if line["phase"] != phase or line["step"] <= step]
        self.history.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def metrics(self, values: dict[str, Any]) -> None:
        """Final figures of the stage, nested names joined by `/`."""
        self.view.point({name: v for name, v in flat(values).items() if isinstance(v, int | float)}, 0)

    def dataset(self, table: pa.Table, source: Path, name: str, context: str) -> None:
        """The rows a stage reads, as an MLflow input."""
        self.view.dataset(table, source, name, context)

    def model(self, model: Any, tokenizer: Any) -> None:
        """A trained model as an MLflow model of the transformers flavour, with a signature."""
        self.view.model(model, tokenizer)


@contextmanager
def stage_run(
    stage: str, *, params: dict[str, Any], tags: dict[str, str], hashes: dict[str, str], scratch: Path
) -> Iterator[Recorder]:
    """One stage as an MLflow run, and its history in `scratch`.

    `params` are the settings it was given (dataclasses allowed as values), `tags` say what it works on and name the
    run, `hashes` identify what it read. A stage that was killed and starts again goes on in the same run.
    """
    settings = json.loads(json.dumps(flat(params)))
    made_with = {"stage": stage, **tags, **hashes, **settings}
    view = View("/".join([stage, *tags.values()]), made_with, settings, scratch / "mlflow_run.json")
    try:
        yield Recorder(scratch / "history.jsonl", view, made_with)
    except BaseException:
        view.end("FAILED")
        raise
    view.end("FINISHED")


def read_history(file: Path) -> list[dict[str, Any]]:
    """The lines of a history.jsonl; a last line cut off by a kill is left out."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


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


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a/b': 1}; a dataclass counts as the dict of its fields."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        value = asdict(value) if is_dataclass(value) else value  # type: ignore[arg-type]
        out |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


class View:
    """The MLflow side; every call is safe to lose."""

    def __init__(self, name: str, made_with: dict[str, Any], params: dict[str, Any], run_file: Path):
        self.points: list[tuple[str, float, int, int]] = []
        self.flushed = time.monotonic()
        self.run_id, self.failures, self.lost = "", 0, False
        self._try(lambda: self._start(name, made_with, params, run_file))

    def point(self, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self.points += [(name, float(v), now, step) for name, v in values.items() if math.isfinite(v)]
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self._try(self._flush)

    def dataset(self, table: pa.Table, source: Path, name: str, context: str) -> None:
        def log() -> None:
            import mlflow
            from mlflow.data.pandas_dataset import from_pandas

            with warnings.catch_warnings(action="ignore"):  # on how it names a local source, on integer columns
                data = from_pandas(table.to_pandas(), source=str(source), name=name, targets="label")
                mlflow.log_input(data, context=context)

        self._try(log)

    def model(self, model: Any, tokenizer: Any) -> None:
        self._try(lambda: _log_model(model, tokenizer))

    def end(self, status: str) -> None:
        def end() -> None:
            import mlflow

            mlflow.end_run(status)
            client = mlflow.MlflowClient()
            parent = client.get_run(self.run_id).data.tags.get("mlflow.parentRunId")
            if parent and client.get_run(parent).info.status != "FAILED":  # one failed stage fails the pipeline run
                client.set_terminated(parent, status)

        self._try(self._flush)
        self._try(end)

    def _try(self, call: Callable[[], None]) -> None:
        if self.lost:
            return
        try:
            call()
            self.failures = 0
        except Exception as error:
            self.failures += 1
            self.lost = not self.run_id or self.failures == MOST_FAILURES
            what = "lost for this stage" if self.lost else "not reached this time"
            warnings.warn(f"MLflow is {what}, the files stay the record: {error}", stacklevel=2)

    def _start(self, name: str, made_with: dict[str, Any], params: dict[str, Any], run_file: Path) -> None:
        import mlflow

        for noisy in ("alembic", "mlflow.transformers"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        SCRATCH.mkdir(exist_ok=True)
        mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{STORE.resolve()}"))
        with FileLock(SCRATCH / "mlflow.lock"):  # one process at a time makes the store and the parent
            parent = _pipeline_run(mlflow.set_experiment(EXPERIMENT).experiment_id)
        before = read_json(run_file) if run_file.exists() else {}
        known = before.get("run") if before.get("made_with") == json.loads(json.dumps(made_with)) else None
        tags = {name: str(value) for name, value in made_with.items() if name not in params}
        tags |= {k: v for k in ("DVC_STAGE", "DVC_EXP_NAME") if (v := os.environ.get(k))}
        run = mlflow.start_run(run_id=known, parent_run_id=None if known else parent, run_name=name, tags=tags)
        self.run_id = run.info.run_id
        write_json(run_file, {"run": self.run_id, "made_with": made_with})
        mlflow.log_params(params)

    def _flush(self) -> None:
        import mlflow
        from mlflow.entities import Metric

        client, count = mlflow.MlflowClient(), len(self.points)
        self.flushed = time.monotonic()
        for start in range(0, count, 1000):
            points = [Metric(*point) for point in self.points[start : min(start + 1000, count)]]
            client.log_batch(self.run_id, metrics=points)
        del self.points[:count]


def _pipeline_run(experiment: str) -> str:
    """The run that stands for this pipeline run: found by its key, or made by the first stage."""
    import mlflow

    key = _pipeline_key()
    client = mlflow.MlflowClient()
    found = client.search_runs([experiment], filter_string=f"tags.`{PIPELINE_TAG}` = '{key}'", max_results=1)
    if found:
        return found[0].info.run_id
    name = os.environ.get("DVC_EXP_NAME") or time.strftime("repro %Y-%m-%d %H:%M:%S")
    run = client.create_run(experiment, run_name=name, tags={PIPELINE_TAG: key, "stage": "pipeline"})
    return run.info.run_id


def _pipeline_key() -> str:
    """What all stages of one pipeline run share: FILBERT_PIPELINE, or the `dvc` process above them."""
    if key := os.environ.get("FILBERT_PIPELINE"):
        return key
    above = psutil.Process().parents()
    dvc = next((p for p in above if any(Path(word).name == "dvc" for word in p.cmdline()[:3])), psutil.Process())
    return f"{dvc.pid}-{dvc.create_time():.2f}"


def _log_model(model: Any, tokenizer: Any) -> None:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec("string")]), outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")])
    )
    mlflow.transformers.log_model(
        {"model": model, "tokenizer": tokenizer},
        name="model",
        task="text-classification",
        signature=signature,
        pip_requirements=["torch", "transformers"],
    )
