"""Released models in MLflow's registry: a version each; the alias `champion` moves to a better one alone."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from filbert.tracking.mlflow_store import MlflowStore

CHAMPION, OBJECTIVE = "champion", "validation"
SERVED = Path(__file__).with_name("served_model.py")


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: str
    is_champion: bool


def register_release(folder: Path, name: str, figures: dict[str, float], tags: dict[str, str]) -> Registered:
    """Register the release in `folder` as a new version of the model `name`, which `mlflow models serve` answers with.

    Args:
        figures: of the release, in its run and as tags of the version; the champion is the one with the best `validation`.
    """
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    client = MlflowStore().client
    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "text")]), outputs=Schema([ColSpec("string", "answer")])
    )
    # recorded, not ignored: MLflow sets filters of its own
    with mlflow.start_run(run_name=f"release/{name}", tags=tags), warnings.catch_warnings(record=True):
        mlflow.log_metrics(figures)
        logged = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(SERVED),
            artifacts={"release": str(folder.absolute())},
            signature=signature,
            pip_requirements=["mlflow", "onnxruntime", "tokenizers"],
            registered_model_name=name,
        )
    version = str(logged.registered_model_version)
    for key, value in {**figures, **tags}.items():
        client.set_model_version_tag(name, version, key, str(value))
    champion = client.get_registered_model(name).aliases.get(CHAMPION)
    before = client.get_model_version(name, champion).tags.get(OBJECTIVE) if champion else None
    if is_better := before is None or figures[OBJECTIVE] > float(before):
        client.set_registered_model_alias(name, CHAMPION, version)
    return Registered(name, version, is_better)
