"""Filbert: BERT in a nutshell. What is computed: tensors in, tensors out."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

NO_TELEMETRY = {  # what libraries would report to the network; some read it when they are imported, after this package
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # `datasets` counts each load
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime reports each session
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
for _name, _value in NO_TELEMETRY.items():
    os.environ.setdefault(_name, _value)


class FilbertError(Exception):
    """Something the user gave cannot be used; the message says what was expected, what came, where, and what to do."""


def load(folder: Path | str, threads: int | None = None) -> Any:
    """A trained or exported model, ready to be asked (filbert.export.inference.Predictor):
    `filbert.load(folder).predict(["a warm, funny film"])`.

    Raises:
        FilbertError: the folder holds no model.
    """
    return import_module("filbert.export.inference").open_model(folder, threads)  # nothing else here reaches that room
