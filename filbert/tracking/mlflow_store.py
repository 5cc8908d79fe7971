"""MLflow's store: runs are found by their key or created, and completed from records that the files give."""

import logging
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filbert import FilbertError
from filbert.runtime.secrets import without_password
from filbert.tracking.history import Point

if TYPE_CHECKING:
    from mlflow.entities import Run

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault(
    "MLFLOW_HTTP_REQUEST_TIMEOUT", "5"
)  # seconds; MLflow's defaults, 120 and 7 retries, delay a stage
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

DATABASE_ATTEMPTS = 4  # at opening a database, a second in all; MLflow's 10 take 100 s, twice

EXPERIMENT = "filbert"
STORE = Path("mlflow.db")
KEY_TAG = "filbert.key"
PIPELINE_TAG = "filbert.pipeline"
LONGEST = 300  # characters of a library's message
MAX_BATCH = 1000  # points that a store accepts in one call


@dataclass(frozen=True)
class RunRecord:
    """A run as the files record it."""

    name: str
    key: str
    tags: dict[str, str]
    params: dict[str, Any]
    figures: dict[str, float]  # final ones
    start: int  # milliseconds since 1970
    end: int
    points: list[Point] = field(default_factory=list)
    rows: tuple[str, str] | None = None  # the task and the digest of the rows it was trained on
    folder: str = ""  # of the model it made
    measures: tuple[str, ...] = ()  # keys of the runs whose models it measures
    seeds: dict[str, "RunRecord"] = field(default_factory=dict)  # of an aggregate: the run of each seed


class MlflowStore:
    """The runs of the experiment, in the store that MLFLOW_TRACKING_URI names."""

    def __init__(self) -> None:
        """Open the store; create it and the experiment where there are none.

        Raises:
            FilbertError: it cannot be reached.
        """
        import mlflow
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = DATABASE_ATTEMPTS
        for noisy in ("alembic", "mlflow.store", "mlflow.store.db.utils", "mlflow.transformers"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what goes wrong is told once, by us, in a line
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{STORE.resolve()}")
        mlflow.set_tracking_uri(uri)
        try:
            if uri.startswith("sqlite:///") and mlflow.get_experiment_by_name(EXPERIMENT) is None:
                beside = Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlruns"  # wherever this stage runs
                mlflow.create_experiment(EXPERIMENT, artifact_location=str(beside / EXPERIMENT))
            self.experiment = mlflow.set_experiment(EXPERIMENT).experiment_id
        except Exception as error:
            raise FilbertError(
                f"expected an MLflow store at MLFLOW_TRACKING_URI or in {STORE}; it cannot be reached: {first_line(error)}; "
                "where it is damaged or of another MLflow, move it away: `make track` fills a new one"
            ) from None
        self.client = mlflow.MlflowClient()

    def find(self, key: str, time: int | None = None) -> "Run | None":
        """The newest run of a key, or the newest that was running at a time (milliseconds since 1970)."""
        found = self._tagged(KEY_TAG, key)
        return next((r for r in found if time is None or r.info.start_time <= time <= (r.info.end_time or time)), None)

    def _tagged(self, tag: str, key: str) -> "list[Run]":
        """The runs whose tag has a value, the newest first."""
        order = ["attributes.start_time DESC", "attributes.run_id"]
        return list(self.client.search_runs([self.experiment], f"tags.`{tag}` = '{key}'", order_by=order))

    def has_run(self, run: str) -> bool:
        """Whether the store has a run of this id."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def model_of(self, key: str) -> str:
        """The id of the model that the run of a key made; empty where there is none."""
        run = self.find(key)
        return run.outputs.model_outputs[-1].model_id if run and run.outputs and run.outputs.model_outputs else ""

    def pipeline_run(self, key: str, name: str) -> str:
        """The parent run of a pipeline run's stages: found by its key, or created; if several machines create one at the same
        time, the first counts."""
        if found := self._tagged(PIPELINE_TAG, key):
            return found[-1].info.run_id
        tags = {PIPELINE_TAG: key, "stage": "pipeline"}
        made = self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
        first = self._tagged(PIPELINE_TAG, key)[-1].info.run_id
        if first != made:
            self.client.delete_run(made)
        return first

    def restored_run(self) -> str:
        """The parent of all runs that are restored from files."""
        run = self.pipeline_run("files", "from files")
        self.client.set_terminated(run)
        return run

    def write(self, record: RunRecord) -> bool:
        """Complete a run to its record; whether it had to be created."""
        from mlflow.entities import Param, RunTag
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        existing = self.find(record.key, record.end if record.points else None)
        tags = record.tags | self._seed_links(record)
        if existing:
            run, data = existing, existing.data
            missing = [RunTag(name, value) for name, value in tags.items() if data.tags.get(name) != value]
        else:
            # an aggregate has no parent: its seeds may belong to several pipeline runs
            parent = {} if record.seeds else {MLFLOW_PARENT_RUN_ID: self.restored_run()}
            tags |= {KEY_TAG: record.key} | parent
            run = self.client.create_run(self.experiment, record.start, tags, record.name)
            data, missing = run.data, []
        params = [Param(name, str(value)) for name, value in record.params.items() if name not in data.params]
        self.client.log_batch(run.info.run_id, params=params, tags=missing)
        self.log_points(run.info.run_id, finite(record.points))
        self._link(run, record)
        self._log_figures(run, record)
        if run.info.status != "FINISHED":
            self.client.set_terminated(run.info.run_id, "FINISHED", record.end)
        return existing is None

    def log_points(self, run: str, points: list[Point], model: str = "") -> None:
        """Write points; points that exist already are not changed."""
        from mlflow.entities import Metric

        for start in range(0, len(points), MAX_BATCH):
            part = [Metric(*point, model_id=model or None) for point in points[start : start + MAX_BATCH]]
            self.client.log_batch(run, metrics=part)

    def _log_figures(self, run: "Run", record: RunRecord) -> None:
        known = run.data.metrics  # one that was measured again is a later point: two of one time are refused
        points = [
            (name, value, now() if name in known else record.end, 0)
            for name, value in record.figures.items()
            if known.get(name) != value
        ]
        self.log_points(
            run.info.run_id, finite(points), self.model_of(record.measures[0]) if len(record.measures) == 1 else ""
        )

    def _link(self, run: "Run", record: RunRecord) -> None:
        """Link the rows that a run read, the model it made, the models it measures."""
        from mlflow.entities import LoggedModelInput, LoggedModelOutput
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

        inputs, outputs = run.inputs, run.outputs
        if record.rows and not (inputs and inputs.dataset_inputs):
            self.log_dataset(run.info.run_id, *record.rows, "training")
        if record.folder and not (outputs and outputs.model_outputs):
            tags = {MLFLOW_MODEL_IS_EXTERNAL: "true", "folder": record.folder}
            model = self.client.create_logged_model(self.experiment, model_name(record.name), run.info.run_id, tags)
            self.client.finalize_logged_model(model.model_id, "READY")
            self.client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])
        models = list(filter(None, map(self.model_of, record.measures)))
        if models:
            self.client.log_inputs(run.info.run_id, models=list(map(LoggedModelInput, models)))

    def log_dataset(
        self, run: str, name: str, digest: str, context: str, source: str = "", schema: str = "", profile: str = ""
    ) -> None:
        """Log the rows that a run reads."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        rows = Dataset(name, digest, "local", f'{{"uri": "{source}"}}', schema or None, profile or None)
        self.client.log_inputs(run, [DatasetInput(rows, [InputTag(MLFLOW_DATASET_CONTEXT, context)])])

    def _seed_links(self, record: RunRecord) -> dict[str, str]:
        """A note that links the runs of an aggregate's seeds. Their figures are completed with those that need all seeds."""
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

        links = []
        for seed, each in record.seeds.items():
            if run := self.find(each.key):
                self._log_figures(run, each)
                links.append(f"[{seed}](#/experiments/{self.experiment}/runs/{run.info.run_id})")
        return {MLFLOW_RUN_NOTE: "Seeds: " + ", ".join(links)} if links else {}


def first_line(error: BaseException) -> str:
    """What went wrong in one line, without a password; MLflow's and SQLAlchemy's messages have several, with the query."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_password(lines[0])[:LONGEST] if lines else type(error).__name__


def model_name(run: str) -> str:
    """The name of a run's model: MLflow allows no slash in it."""
    return run.replace("/", "-")


def finite(points: list[Point]) -> list[Point]:
    """The points whose value is a finite number."""
    return [point for point in points if math.isfinite(point[1])]


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)
