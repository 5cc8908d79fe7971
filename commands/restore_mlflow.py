"""Bring back in MLflow what the files tell: after its store was lost, or could not be reached. No stage of DVC's."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from filbert.evaluation import mlflow_export, results, statistics
from filbert.runtime import config, progress
from filbert.tracking import mlflow_store
from stages import run


def track(
    metrics: Path,
    details: Path,
    models: Annotated[list[Path], typer.Argument(help="folders that hold teachers or students")],
) -> None:
    """Write trainings, evaluations and aggregates to MLflow from the figures under METRICS and DETAILS and what lies beside the
    models under MODELS; a run that is there is completed, none is made twice."""
    settings = config.section("report", statistics.ReportConfig)
    lines = results.load_results(metrics, details)
    found = [
        *mlflow_export.trainings(models, lines),
        *mlflow_export.evaluations(lines, metrics),
        *mlflow_export.aggregates(lines, metrics, settings),
    ]
    store, made = mlflow_store.MlflowStore(), Counter[str]()
    for record in progress.track("runs", found, len(found)):
        made[record.tags["stage"]] += store.write(record)
    said = ", ".join(f"{count} {stage}" for stage, count in made.items() if count) or "none"
    progress.log(f"MLflow, experiment {mlflow_store.EXPERIMENT}: {len(found)} runs are complete; made anew: {said}")


if __name__ == "__main__":
    run(track)
