"""Filbert: BERT in a nutshell. What is computed: tensors in, tensors out."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # `datasets` would report each load to a counter on the network
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault(
    "ORT_DISABLE_TELEMETRY", "1"
)  # onnxruntime would report each session to mobile.events.data.microsoft.com


class FilbertError(Exception):
    """Something the user gave cannot be used; the message says what was expected, what came, where, and what to do."""


def load(folder: Path | str, threads: int | None = None) -> Any:
    """A trained or exported model, ready to be asked (filbert.export.inference.Predictor):
    `filbert.load(folder).predict(["a warm, funny film"])`.

    Raises:
        FilbertError: the folder holds no model.
    """
    return import_module("filbert.export.inference").open_model(folder, threads)  # nothing else here reaches that room
