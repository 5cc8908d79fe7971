"""MLflow, the view: every call is safe to lose. The one module that imports mlflow.

A stage is an MLflow run nested under one run per pipeline run. When the store cannot be reached the view is given up
with a warning, and the files stay the record.
"""

import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from filelock import FileLock

from filbert.files import FIRST, SCRATCH, read_json, write_json

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

EXPERIMENT = "filbert"
STORE = Path("mlflow.db")
FLUSH_SECONDS = 5.0
MOST_FAILURES = 3  # in a row, before the view is given up
PIPELINE_TAG = "filbert.pipeline"


class View:
    """One stage as an MLflow run."""

    def __init__(self, name: str, made_with: dict[str, Any], params: dict[str, Any], run_file: Path):
        self.points: list[tuple[str, float, int, int]] = []
        self.flushed = time.monotonic()
        self.run_id, self.failures, self.lost = "", 0, not FIRST
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

    tags = type(model).__name__.endswith("ForTokenClassification")
    signature = ModelSignature(
        inputs=Schema([ColSpec("string")]), outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")])
    )
    mlflow.transformers.log_model(
        {"model": model, "tokenizer": tokenizer},
        name="model",
        task="token-classification" if tags else "text-classification",
        signature=signature,
        pip_requirements=["torch", "transformers", *(["bm25s"] if hasattr(model, "store") else [])],
    )
