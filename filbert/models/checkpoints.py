"""Models in and out of folders: what a student starts from, how it is saved, and the one way any model is asked.

A student that plain `bert` can express is saved as `model_type: bert` and loads without filbert; any other carries
filbert/bert.py with it and loads with `trust_remote_code=True`.
"""

import inspect
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from filbert import FilbertError
from filbert.data.batches import Batch, TokenizedDataset
from filbert.data.tasks import Task, TaskKind
from filbert.models.bert import FilbertConfig, FilbertForSequenceClassification, FilbertForTokenClassification
from filbert.models.bilstm import BiLstmConfig, BiLstmForSequenceClassification, BiLstmForTokenClassification
from filbert.models.reference_bert import ReferenceConfig, ReferenceForSequenceClassification
from filbert.runtime.files import IS_MAIN_PROCESS, write_json
from filbert.tracking.recording import RunRecorder

logging.disable_progress_bar()
logging.set_verbosity_error()  # a fresh head is what we ask for, no news
for shape in (FilbertConfig, ReferenceConfig, BiLstmConfig):
    AutoConfig.register(shape.model_type, shape)
    shape.register_for_auto_class()
for kind in (FilbertForSequenceClassification, ReferenceForSequenceClassification, BiLstmForSequenceClassification):
    AutoModelForSequenceClassification.register(kind.config_class, kind)
    kind.register_for_auto_class("AutoModelForSequenceClassification")
for kind in (FilbertForTokenClassification, BiLstmForTokenClassification):
    AutoModelForTokenClassification.register(kind.config_class, kind)
    kind.register_for_auto_class("AutoModelForTokenClassification")

HISTORY = "history.jsonl"
PROVENANCE = "provenance.json"  # settings, task, method, seed, and hashes of what was read
ONLY_FILBERT = ("model_type", "architectures", "auto_map", "head_size", "layer_heads", "layer_intermediate",
                "embedding_size")  # fmt: skip


Student = TypeVar("Student", bound=FilbertForSequenceClassification)


class ShapeError(FilbertError):
    """The checkpoint is not one that this operation can cut a student from."""


@dataclass(frozen=True)
class StudentConfig:
    """The student every method trains: the named layers of the checkpoint, from 0, in this order."""

    layers: tuple[int, ...]


def all_layers(folder: Path) -> StudentConfig:
    """All layers of a model."""
    return StudentConfig(tuple(range(AutoConfig.from_pretrained(folder).num_hidden_layers)))


def new_teacher(checkpoint: Path, task: Task) -> PreTrainedModel:
    """Any encoder that transformers knows, with a fresh head for `task`."""
    face = AutoModelForTokenClassification if task.kind is TaskKind.TAGGING else AutoModelForSequenceClassification
    return face.from_pretrained(checkpoint, dtype=torch.float32, **label_fields(task))


def encoder_class(task: Task) -> type[FilbertForSequenceClassification]:
    """Our encoder with the head that a task needs."""
    return FilbertForTokenClassification if task.kind is TaskKind.TAGGING else FilbertForSequenceClassification


def new_student(checkpoint: Path, task: Task, config: StudentConfig) -> FilbertForSequenceClassification:
    """A student of some of the checkpoint's layers, with the checkpoint's weights and a fresh head.

    Raises:
        ShapeError: the checkpoint is not BERT-shaped or has no such layer.
    """
    return new_student_of_class(encoder_class(task), checkpoint, task, config)


def new_student_of_class(
    kind: type[Student], checkpoint: Path, task: Task, config: StudentConfig, **fields: Any
) -> Student:
    """A student of another kind, likewise; parts that `kind` adds are fresh, `fields` are of its configuration.

    The head is drawn before those parts, so that one seed gives students of all kinds one head.
    """
    source = AutoConfig.from_pretrained(checkpoint)
    if source.model_type != "bert":
        raise ShapeError(
            f"{checkpoint}: expected a BERT-shaped checkpoint to cut a student from, got {source.model_type}"
        )
    if not config.layers or not all(0 <= layer < source.num_hidden_layers for layer in config.layers):
        raise ShapeError(
            f"student.layers: expected numbers from 0 to {source.num_hidden_layers - 1}, got {config.layers}"
        )
    taken = {k: v for k, v in source.to_dict().items() if k not in ONLY_FILBERT and k != "dtype"}
    shape = taken | {"num_hidden_layers": len(config.layers)} | label_fields(task)
    if not issubclass(kind, encoder_class(task)):
        raise ShapeError(f"{task.name}: {kind.__name__} has no head for rows of kind {task.kind}")
    plain = encoder_class(task)(FilbertConfig(**shape))
    ours = plain.state_dict()
    weights = {
        name: value.float() for name, value in _cut(read_weights(checkpoint), config.layers).items() if name in ours
    }
    missing = [name for name in ours if name not in weights and not name.startswith(("bert.pooler.", "classifier."))]
    if missing:
        raise ShapeError(f"{checkpoint}: its weights lack {missing[0]} and {len(missing) - 1} others")
    student = kind(kind.config_class(**shape, **fields))
    student.load_state_dict(ours | weights, strict=False)
    return student


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of all safetensors files of a checkpoint, with or without the `bert.` prefix, named with it."""
    tensors = {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}
    named = {name if name.startswith(("bert.", "classifier.")) else f"bert.{name}": v for name, v in tensors.items()}
    return {name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): v
            for name, v in named.items()}  # google-bert/bert-base-uncased still has TensorFlow's names  # fmt: skip


def _cut(weights: dict[str, torch.Tensor], layers: tuple[int, ...]) -> dict[str, torch.Tensor]:
    prefix = "bert.encoder.layer."
    kept = {name: value for name, value in weights.items() if not name.startswith(prefix)}
    for new, old in enumerate(layers):
        start = f"{prefix}{old}."
        kept |= {f"{prefix}{new}.{n[len(start) :]}": v for n, v in weights.items() if n.startswith(start)}
    return kept


def label_fields(task: Task) -> dict[str, Any]:
    """What a model's configuration says of a task's labels."""
    names = list(task.labels) or ["score"]
    return {
        "num_labels": task.outputs,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "regression" if task.kind is TaskKind.REGRESSION else "single_label_classification",
    }


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer to `folder`: an ordinary Hugging Face folder."""
    if isinstance(model, FilbertForSequenceClassification) and model.config.is_plain:
        fields = {k: v for k, v in model.config.to_dict().items() if k not in ONLY_FILBERT}
        architecture = type(model).__name__.replace("Filbert", "Bert")
        BertConfig(**fields, architectures=[architecture]).save_pretrained(folder)
        weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_with_provenance(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, recorder: RunRecorder
) -> None:
    """Save a trained model with its history and what it was made with, and log it to MLflow, if it is one that classifies."""
    if not IS_MAIN_PROCESS:
        return
    save(model, tokenizer, folder)
    shutil.copyfile(recorder.history, folder / HISTORY)
    write_json(folder / PROVENANCE, recorder.provenance)
    if hasattr(model, "classifier"):
        recorder.model(load_model(folder), tokenizer)


def load_model(folder: Path) -> PreTrainedModel:
    """The model of a saved teacher or student, in evaluation mode."""
    (architecture,) = AutoConfig.from_pretrained(folder).architectures or ("",)
    tags = architecture.endswith("ForTokenClassification")
    face = AutoModelForTokenClassification if tags else AutoModelForSequenceClassification
    return face.from_pretrained(folder, dtype=torch.float32).eval()


def load_prunable(folder: Path, task: Task) -> FilbertForSequenceClassification:
    """A saved student as our own encoder, plain BERTs too: what can be cut.

    Raises:
        ShapeError: it is not BERT-shaped.
    """
    model = load_model(folder)
    if isinstance(model, FilbertForSequenceClassification):
        return model
    return new_student(folder, task, StudentConfig(tuple(range(model.config.num_hidden_layers))))


def forward_batch(model: nn.Module, batch: Batch, states: bool = False) -> Any:
    """The answer of any model, ours or Hugging Face's, to a batch: `.logits` [B, C], with `states` `.hidden_states` too.

    What the batch carries under the name of one of the model's inputs, such as a reference, is given to it.
    """
    known = _parameters(type(model).forward)
    inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask}
    if "token_type_ids" in known:
        inputs["token_type_ids"] = batch.types
    if states:
        inputs["output_hidden_states"] = True
    return model(**inputs, **{name: value for name, value in batch.targets.items() if name in known})


@cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def predict_logits(model: nn.Module, rows: TokenizedDataset, size: int, device: torch.device) -> np.ndarray:
    """The logits [N, C] float32 on all rows, of tagged rows [tokens, C], in evaluation mode; rows are grouped by length on the
    way."""
    order = np.argsort(rows.lengths, kind="stable")
    was, parts = model.training, []
    model.to(device).eval()
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            batch = rows.batch(order[start : start + size]).to(device)
            answer = forward_batch(model, batch).logits.float()
            parts.append((answer if rows.tags is None else answer[batch.mask]).cpu().numpy())
    model.train(was)
    found = np.concatenate(parts)
    if rows.tags is None:
        at = order
    else:  # row by row, each a run of tokens
        at = np.repeat(rows.offsets[order] - _starts(rows.lengths[order]), rows.lengths[order]) + np.arange(len(found))
    out = np.empty_like(found)
    out[at] = found
    return out


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths
