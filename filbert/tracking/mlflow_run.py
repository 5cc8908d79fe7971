"""A stage as an MLflow run while it runs, nested under one run per pipeline run. No call here can fail the stage.

What cannot be written is kept for the next attempt while the stage goes on: the files are the record, and `commands.restore_mlflow`
restores from them what was lost.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from filelock import FileLock

from filbert import FilbertError
from filbert.runtime import signals
from filbert.runtime.files import IS_MAIN_PROCESS, SCRATCH, read_json, write_json
from filbert.tracking.mlflow_store import (
    KEY_TAG,
    MAX_BATCH,
    MlflowStore,
    Point,
    RunRecord,
    finite,
    first_line,
    model_name,
)

ENDED_EARLY = ("FAILED", "KILLED")
FLUSH_SECONDS = 5.0
PATIENCE_SECONDS = 1.0  # a store that took longer to fail is not asked again at a stage's end, unless it is due
MAX_SHARE = 1 / 20  # of a stage's time that writing points may take


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
        self.pending_params: dict[str, Any] = dict(params)
        self.pending_points: list[Point] = []
        self.run_id = self.model_id = ""
        self.next_attempt, self.took, self.unreachable, self.complete = 0.0, 0.0, False, True
        self._try(self._flush)
        if not self.unreachable:
            self.next_attempt = time.monotonic() + FLUSH_SECONDS  # starting a run takes longer than writing points

    def params(self, values: dict[str, Any]) -> None:
        """Add parameters; they are written with the next points."""
        self.pending_params |= values

    def points(self, points: list[Point]) -> None:
        """Add points; they are written when the next attempt is due."""
        self.pending_points += finite(points)
        if time.monotonic() > self.next_attempt:
            self._try(self._flush)

    def dataset(self, table: pa.Table, source: Path, name: str, digest: str, context: str) -> None:
        """Log the rows that the stage reads."""
        self._once(lambda: self._dataset(table, source, name, digest, context))

    def model(self, model: Any, tokenizer: Any) -> None:
        """Log the model that the stage made."""

        def log() -> None:
            self._open_run()
            _log_model(model_name(self.name), model, tokenizer)

        self._once(log)

    def link_model(self, key: str) -> None:
        """Link the model that the run of `key` made: this run measures it."""
        self._once(lambda: self._link_model(key))

    def write(self, records: Iterable[RunRecord]) -> None:
        """Write runs other than the stage's own."""
        self._once(lambda: [self._open_run().write(record) for record in records])

    def end(self, status: str) -> None:
        """Write what is pending, and end the run as FINISHED, FAILED or KILLED; warns where a part could not be written."""
        is_due = not self.unreachable or self.took < PATIENCE_SECONDS or time.monotonic() > self.next_attempt
        self.complete &= is_due and self._try(self._flush)
        if self.run_id and not self.unreachable:
            self.complete &= self._try(lambda: self._end(status))
        if not self.complete:
            warnings.warn(f"{self.name}: MLflow lacks a part of this run; `make track` restores it", stacklevel=2)

    def _once(self, call: Callable[[], Any]) -> None:
        """Try a call that is not kept for later: it is skipped while MLflow cannot be reached."""
        self.complete &= (not self.unreachable or time.monotonic() > self.next_attempt) and self._try(call)

    def _try(self, call: Callable[[], Any]) -> bool:
        """Whether a call succeeded; a signal waits for its end, for one that is torn may leave a database locked."""
        if not IS_MAIN_PROCESS:
            return True
        with signals.held():
            succeeded = self._reach(call)
        signals.raise_unless_held()
        return succeeded

    def _reach(self, call: Callable[[], Any]) -> bool:
        began = time.monotonic()
        try:
            call()
            self.unreachable = False
        except Exception as error:
            if not self.unreachable:
                told = str(error) if isinstance(error, FilbertError) else first_line(error)
                warnings.warn(f"MLflow cannot be reached, the files stay the record: {told}", stacklevel=4)
            self.unreachable = True
        now = time.monotonic()
        self.took, self.next_attempt = now - began, now + max(FLUSH_SECONDS, (now - began) / MAX_SHARE)
        return not self.unreachable

    def _open_run(self) -> MlflowStore:
        """The store, after starting this run in it or resuming it."""
        import mlflow

        if not self.run_id:
            SCRATCH.mkdir(exist_ok=True)
            with FileLock(SCRATCH / "mlflow.lock"):  # one process at a time creates the store and the parent run
                self.store = MlflowStore()
                name = os.environ.get("DVC_EXP_NAME") or time.strftime("repro %Y-%m-%d %H:%M:%S")
                parent = self.store.pipeline_run(_pipeline_key(), name)
            before = {}
            with suppress(FileNotFoundError, FilbertError):  # none yet, or damaged: a new run
                before = read_json(self.run_file)
            same = before.get("provenance") == json.loads(json.dumps(self.provenance))
            resumed = before["run"] if same and self.store.has_run(before["run"]) else None
            run = mlflow.start_run(
                run_id=resumed, parent_run_id=None if resumed else parent, run_name=self.name, tags=self.tags
            )
            self.run_id = run.info.run_id
            write_json(self.run_file, {"run": self.run_id, "provenance": self.provenance})
        return self.store

    def _flush(self) -> None:
        from mlflow.entities import Param

        store = self._open_run()
        if self.pending_params:
            store.client.log_batch(self.run_id, params=[Param(name, str(v)) for name, v in self.pending_params.items()])
            self.pending_params = {}
        while self.pending_points:
            part = self.pending_points[:MAX_BATCH]
            store.log_points(self.run_id, part, self.model_id)
            del self.pending_points[: len(part)]

    def _dataset(self, table: pa.Table, source: Path, name: str, digest: str, context: str) -> None:
        columns = [{"name": field.name, "type": str(field.type), "required": True} for field in table.schema]
        schema, profile = json.dumps({"mlflow_colspec": columns}), json.dumps({"num_rows": len(table)})
        self._open_run().log_dataset(self.run_id, name, digest, context, str(source), schema, profile)

    def _link_model(self, key: str) -> None:
        from mlflow.entities import LoggedModelInput

        store = self._open_run()
        if model := store.model_of(key):
            store.client.log_inputs(self.run_id, models=[LoggedModelInput(model)])
            self.model_id = model

    def _end(self, status: str) -> None:
        import mlflow

        mlflow.end_run(status)
        client = self.store.client
        parent = client.get_run(self.run_id).data.tags.get("mlflow.parentRunId")
        if parent and client.get_run(parent).info.status not in ENDED_EARLY:  # one failed stage fails the pipeline run
            client.set_terminated(parent, status)


def _pipeline_key() -> str:
    """A key that all stages of one pipeline run share: FILBERT_PIPELINE, or the `dvc` process that started them."""
    if key := os.environ.get("FILBERT_PIPELINE"):
        return key
    above = psutil.Process().parents()
    dvc = next((p for p in above if any(Path(word).name == "dvc" for word in p.cmdline()[:3])), psutil.Process())
    return f"{dvc.pid}-{dvc.create_time():.2f}"


def _log_model(name: str, model: Any, tokenizer: Any) -> None:
    """Log a model to the active run."""
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
