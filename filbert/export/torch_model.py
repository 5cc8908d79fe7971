"""A trained teacher or student that was not exported, asked through torch as an export is asked."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from filbert.data import tasks
from filbert.export import folder as folders
from filbert.export.folder import FolderError, ModelCard
from filbert.export.inference import Predictor, load_tokenizer
from filbert.models import checkpoints
from filbert.runtime import config, device, files


def open_torch(folder: Path, threads: int | None = None) -> Predictor:
    """The model trained in `folder`, ready to be asked.

    Raises:
        FolderError: it was not trained here: there is no record of what it was made with.
    """
    if not (folder / checkpoints.PROVENANCE).is_file():
        raise FolderError(
            f"{folder}: expected a trained or exported model, found no {checkpoints.PROVENANCE} and no {folders.FLOAT32}"
        )
    if threads:
        torch.set_num_threads(threads)
    try:
        model = checkpoints.load_model(folder)
    except (OSError, ValueError, KeyError) as error:
        raise FolderError(f"{folder}: expected a trained model, got {error}") from error
    return Predictor(card_of(folder, model), load_tokenizer(folder), torch_runner(model))


def card_of(folder: Path, model: PreTrainedModel) -> ModelCard:
    """What is known of a trained model: from its configuration, its provenance, and the task table where that has its task."""
    provenance = files.read_json(folder / checkpoints.PROVENANCE)
    named: dict[Any, Any] = dict(model.config.id2label or {})
    task, labels = provenance.get("task", ""), tuple(str(named[number]) for number in sorted(named))
    params = config.read_params() if config.PARAMS.is_file() else {}
    known = tasks.find(task) if task in params.get("task_table", ()) else None  # params.yaml may be another project's
    kind = "tagging" if type(model).__name__.endswith("ForTokenClassification") else "single"
    if model.config.problem_type == "multi_label_classification":
        kind = "multilabel"
    if model.config.problem_type == "regression":
        kind, labels = "regression", ()
    return ModelCard(
        task=task, student=provenance.get("method", "teacher"), seed=int(provenance.get("seed", 0)),
        kind=str(known.kind) if known else kind, columns=known.columns if known else ("text",), labels=labels,
        max_length=provenance["tokenizer/max_length"], pad=getattr(model.config, "pad_token_id", 0) or 0,
        model="model.safetensors",
    )  # fmt: skip


def torch_runner(model: PreTrainedModel) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """A Torch model as a function of its inputs."""
    on = device.select_device()
    torch.nn.Module.to(model, on)
    known = inspect.signature(type(model).forward).parameters

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        tensors: dict[str, Any] = {
            name: torch.from_numpy(value).to(on) for name, value in inputs.items() if name in known
        }
        with torch.inference_mode():
            return model(**tensors).logits.float().cpu().numpy()

    return run
