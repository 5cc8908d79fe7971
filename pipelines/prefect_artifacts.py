"""What a run leaves on Prefect's pages: its tables, a link to its MLflow run, the progress of its stages."""

import os
import re
from pathlib import Path
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)

from filbert.tracking.mlflow_store import EXPERIMENT, PIPELINE_TAG
from pipelines.dvc_graph import Stage
from pipelines.run_stage import BAR


class StageOutput:
    """What a stage's command prints: each line goes into the log of its task run, each progress bar becomes an artifact of it."""

    def __init__(self) -> None:
        self.log = get_run_logger()
        self.bars: dict[str, UUID] = {}

    def __call__(self, line: str) -> None:
        self.log.info(line)
        if bar := BAR.match(line):
            self._show(bar["what"], float(bar["percent"]))

    def _show(self, what: str, percent: float) -> None:
        if what in self.bars:
            update_progress_artifact(self.bars[what], percent)
        else:
            self.bars[what] = create_progress_artifact(percent, description=what)  # type: ignore[assignment]


def publish_tables(stages: list[Stage], folder: Path) -> None:
    """Publish the Markdown files among the outs of these stages, one artifact per file."""
    for file in (folder / out for stage in stages for out in stage.plain if out.endswith(".md")):
        key = re.sub("[^a-z0-9]+", "-", file.stem.lower())
        create_markdown_artifact(file.read_text(encoding="utf-8"), key=key, description=f"{file.name} after this run")


def publish_mlflow_link(pipeline: str) -> None:
    """Publish a link to the MLflow run that holds this run's stages, if MLflow's server is up and a stage has run."""
    try:
        server = httpx.URL(mlflow_server())
        bare = server.copy_with(userinfo=b"")
        user = httpx.BasicAuth(server.username, server.password) if server.username else None
        with httpx.Client(base_url=bare.join("/api/2.0/mlflow/"), auth=user, timeout=10) as api:
            found = api.get("experiments/get-by-name", params={"experiment_name": EXPERIMENT}).raise_for_status()
            experiment = found.json()["experiment"]["experiment_id"]
            query = {"experiment_ids": [experiment], "filter": f"tags.`{PIPELINE_TAG}` = '{pipeline}'"}
            runs = api.post("runs/search", json=query).raise_for_status().json().get("runs", [])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError) as error:
        get_run_logger().warning("no link to MLflow's pages, `make ui` starts them: %s", error)
        return
    for run in runs:
        page = bare.copy_with(path="/", fragment=f"/experiments/{experiment}/runs/{run['info']['run_id']}")
        create_link_artifact(
            str(page), key="mlflow", link_text=run["info"]["run_name"], description="its stages in MLflow"
        )


def mlflow_server() -> str:
    """The address of MLflow's pages: MLFLOW_TRACKING_URI if that is a server, else where `make ui` starts one."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return uri if uri.startswith("http") else f"http://127.0.0.1:{os.environ.get('PORT', 5000)}"
