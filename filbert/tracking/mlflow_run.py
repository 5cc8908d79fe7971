"""MLflow, the view of a stage while it runs: every call is safe to lose.

A stage is an MLflow run nested under one run per pipeline run. What cannot be written waits for the next time, while the
stage goes on: the files are the record, and `stages.track` brings back from them what was lost.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from filelock import FileLock

from filbert.runtime.files import IS_MAIN_PROCESS, SCRATCH, read_json, write_json
from filbert.tracking.mlflow_store import (
    KEY_TAG,
    MAX_BATCH,
    MlflowStore,
    Point,
    RunRecord,
    finite,
    model_name,
    without_password,
)

FLUSH_SECONDS = 5.0
SHARE = 1 / 20  # of a stage's time that writing points may take


class MlflowRun:
    """One stage as an MLflow run."""

    def __init__(
        self,
        name: str,
        key: str,
        tags: dict[str, str],
        params: dict[str, Any],
        provenance: dict[str, Any],
        run_file: Path,
    ):
        self.name, self.provenance, self.run_file = name, provenance, run_file
        self.tags = tags | {KEY_TAG: key} | {k: v for k in ("DVC_STAGE", "DVC_EXP_NAME") if (v := os.environ.get(k))}
        self.waiting_params: dict[str, Any] = dict(params)
        self.waiting_points: list[Point] = []
        self.run_id = self.model_id = ""
        self.due, self.behind, self.whole = 0.0, False, True
        self._try(self._flush)
        if not self.behind:
            self.due = time.monotonic() + FLUSH_SECONDS  # what it takes to begin is no measure of what follows

    def params(self, values: dict[str, Any]) -> None:
        self.waiting_params |= values

    def points(self, points: list[Point]) -> None:
        """Take points; write what waits when it is due."""
        self.waiting_points += finite(points)
        if time.monotonic() > self.due:
            self._try(self._flush)

    def dataset(self, table: pa.Table, source: Path, name: str, digest: str, context: str) -> None:
        self._once(lambda: self._dataset(table, source, name, digest, context))

    def model(self, model: Any, tokenizer: Any) -> None:
        def log() -> None:
            self._started()
            _log_model(model_name(self.name), model, tokenizer)

        self._once(log)

    def about(self, key: str) -> None:
        """Link the model that the run of `key` made: the figures of this run are of it."""
        self._once(lambda: self._about(key))

    def write(self, records: Iterable[RunRecord]) -> None:
        """Other runs than the stage's own."""
        self._once(lambda: [self._started().write(record) for record in records])

    def end(self, status: str) -> None:
        self.whole &= self._try(self._flush)
        if self.run_id:
            self.whole &= self._try(lambda: self._end(status))
        if not self.whole:
            warnings.warn(f"{self.name}: MLflow lacks a part of this run; `make track` brings it back", stacklevel=2)

    def _once(self, call: Callable[[], Any]) -> None:
        """What does not wait is left out while MLflow is not reached."""
        self.whole &= (not self.behind or time.monotonic() > self.due) and self._try(call)

    def _try(self, call: Callable[[], Any]) -> bool:
        if not IS_MAIN_PROCESS:
            return True
        began = time.monotonic()
        try:
            call()
            self.behind = False
        except Exception as error:
            if not self.behind:
                warnings.warn(
                    f"MLflow is not reached, the files stay the record: {without_password(error)}", stacklevel=3
                )
            self.behind = True
        now = time.monotonic()
        self.due = now + max(FLUSH_SECONDS, (now - began) / SHARE)
        return not self.behind

    def _started(self) -> MlflowStore:
        """The store, in which this run has begun."""
        import mlflow

        if not self.run_id:
            SCRATCH.mkdir(exist_ok=True)
            with FileLock(SCRATCH / "mlflow.lock"):  # one process at a time makes the store and the parent
                self.runs = MlflowStore()
                name = os.environ.get("DVC_EXP_NAME") or time.strftime("repro %Y-%m-%d %H:%M:%S")
                parent = self.runs.pipeline(_pipeline_key(), name)
            before = read_json(self.run_file) if self.run_file.exists() else {}
            same = before.get("provenance") == json.loads(json.dumps(self.provenance))
            known = before["run"] if same and self.runs.has(before["run"]) else None
            run = mlflow.start_run(
                run_id=known, parent_run_id=None if known else parent, run_name=self.name, tags=self.tags
            )
            self.run_id = run.info.run_id
            write_json(self.run_file, {"run": self.run_id, "provenance": self.provenance})
        return self.runs

    def _flush(self) -> None:
        from mlflow.entities import Param

        runs = self._started()
        if self.waiting_params:
            runs.client.log_batch(self.run_id, params=[Param(name, str(v)) for name, v in self.waiting_params.items()])
            self.waiting_params = {}
        while self.waiting_points:
            part = self.waiting_points[:MAX_BATCH]
            runs.points(self.run_id, part, self.model_id)
            del self.waiting_points[: len(part)]

    def _dataset(self, table: pa.Table, source: Path, name: str, digest: str, context: str) -> None:
        columns = [{"name": field.name, "type": str(field.type), "required": True} for field in table.schema]
        schema, profile = json.dumps({"mlflow_colspec": columns}), json.dumps({"num_rows": len(table)})
        self._started().dataset(self.run_id, name, digest, context, str(source), schema, profile)

    def _about(self, key: str) -> None:
        from mlflow.entities import LoggedModelInput

        runs = self._started()
        if model := runs.model_of(key):
            runs.client.log_inputs(self.run_id, models=[LoggedModelInput(model)])
            self.model_id = model

    def _end(self, status: str) -> None:
        import mlflow

        mlflow.end_run(status)
        client = self.runs.client
        parent = client.get_run(self.run_id).data.tags.get("mlflow.parentRunId")
        if parent and client.get_run(parent).info.status != "FAILED":  # one failed stage fails the pipeline run
            client.set_terminated(parent, status)


def _pipeline_key() -> str:
    """What all stages of one pipeline run share: FILBERT_PIPELINE, or the `dvc` process above them."""
    if key := os.environ.get("FILBERT_PIPELINE"):
        return key
    above = psutil.Process().parents()
    dvc = next((p for p in above if any(Path(word).name == "dvc" for word in p.cmdline()[:3])), psutil.Process())
    return f"{dvc.pid}-{dvc.create_time():.2f}"


def _log_model(name: str, model: Any, tokenizer: Any) -> None:
    """Log a model to the run that is under way."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    tags = type(model).__name__.endswith("ForTokenClassification")
    signature = ModelSignature(
        inputs=Schema([ColSpec("string")]), outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")])
    )
    mlflow.transformers.log_model(
        {"model": model, "tokenizer": tokenizer},
        name=name,
        task="token-classification" if tags else "text-classification",
        signature=signature,
        pip_requirements=["torch", "transformers", *(["bm25s"] if hasattr(model, "store") else [])],
    )
