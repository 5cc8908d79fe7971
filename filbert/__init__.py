"""Filbert: BERT in a nutshell. What is computed: tensors in, tensors out."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filbert.export.inference import Predictor


os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # `datasets` would report each load to a counter on the network
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


class FilbertError(Exception):
    """Something the user gave cannot be used; the message says what was expected, what came, where, and what to do."""


def load(folder: Path | str, threads: int | None = None) -> "Predictor":
    """A trained or exported model, ready to be asked: `filbert.load(folder).predict(["a warm, funny film"])`.

    Raises:
        FilbertError: the folder holds no model.
    """
    from filbert.export.inference import open_model  # imported when needed: stages that only train need no onnxruntime

    return open_model(folder, threads)
