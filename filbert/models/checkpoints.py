"""Models in folders: how teachers and students are built from a checkpoint, saved, loaded and run on batches.

A student that plain `bert` can express is saved as `model_type: bert` and loads without filbert; any other is saved with the file
that defines it (bert.py, reference_bert.py, bilstm.py) and loads elsewhere with `trust_remote_code=True`.
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
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from filbert import FilbertError
from filbert.data.batches import Batch, TokenizedDataset
from filbert.data.tasks import Task, TaskKind
from filbert.models.bert import FilbertConfig, FilbertForSequenceClassification, FilbertForTokenClassification
from filbert.models.bilstm import BiLstmConfig, BiLstmForSequenceClassification, BiLstmForTokenClassification
from filbert.models.loading import load_config, load_pretrained, load_tensors
from filbert.models.reference_bert import ReferenceConfig, ReferenceForSequenceClassification
from filbert.runtime.files import IS_MAIN_PROCESS, write_json
from filbert.tracking.run_recorder import RunRecorder

logging.disable_progress_bar()
logging.set_verbosity_error()  # new heads are intended; missing weights are checked in loading.py
for config_class in (FilbertConfig, ReferenceConfig, BiLstmConfig):
    AutoConfig.register(config_class.model_type, config_class)
    config_class.register_for_auto_class()
for kind in (FilbertForSequenceClassification, ReferenceForSequenceClassification, BiLstmForSequenceClassification):
    AutoModelForSequenceClassification.register(kind.config_class, kind)
    kind.register_for_auto_class("AutoModelForSequenceClassification")
for kind in (FilbertForTokenClassification, BiLstmForTokenClassification):
    AutoModelForTokenClassification.register(kind.config_class, kind)
    kind.register_for_auto_class("AutoModelForTokenClassification")

LAYER = "bert.encoder.layer."  # how the names of a layer's weights begin
HISTORY = "history.jsonl"
PROVENANCE = "provenance.json"  # task, method, seed, settings, and hashes of what was read
ONLY_FILBERT = ("model_type", "architectures", "auto_map", "head_size", "layer_heads", "layer_intermediate",
                "embedding_size")  # fmt: skip


Student = TypeVar("Student", bound=FilbertForSequenceClassification)


class ShapeError(FilbertError):
    """A student of this shape cannot be cut from the checkpoint."""


@dataclass(frozen=True)
class StudentConfig:
    """The student that methods train: some layers of the checkpoint, counted from 0, in this order."""

    layers: tuple[int, ...]


def all_layers(folder: Path) -> StudentConfig:
    """All layers of a model."""
    return StudentConfig(tuple(range(load_config(folder).num_hidden_layers)))


def new_teacher(checkpoint: Path, task: Task) -> PreTrainedModel:
    """Any encoder that transformers supports, with a fresh head for `task`; a BERT as our own encoder, which is faster to train."""
    tagging = task.kind is TaskKind.TAGGING
    auto_class = AutoModelForTokenClassification if tagging else AutoModelForSequenceClassification
    return as_filbert(load_pretrained(auto_class, checkpoint, fresh_head=True, **label_fields(task)))


def as_filbert(model: PreTrainedModel) -> PreTrainedModel:
    """A plain BERT as our own encoder, which answers alike, is faster where logits alone are needed, and traces to a smaller graph;
    any other model as it is."""
    kinds: dict[type[PreTrainedModel], type[FilbertForSequenceClassification]] = {
        BertForSequenceClassification: FilbertForSequenceClassification,
        BertForTokenClassification: FilbertForTokenClassification,
    }
    kind = kinds.get(type(model))
    if kind is None:
        return model
    ours = kind(FilbertConfig(**encoder_fields(model.config)))
    ours.load_state_dict(model.state_dict())
    return ours.train(model.training)


def encoder_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields that plain `bert` knows of a BERT's configuration."""
    return {name: value for name, value in config.to_dict().items() if name not in ONLY_FILBERT}


def encoder_class(task: Task) -> type[FilbertForSequenceClassification]:
    """Our encoder with the head that a task needs."""
    return FilbertForTokenClassification if task.kind is TaskKind.TAGGING else FilbertForSequenceClassification


def new_student(checkpoint: Path, task: Task, config: StudentConfig) -> FilbertForSequenceClassification:
    """A student of some of the checkpoint's layers, with its weights; a head that it lacks, or has in another shape, is fresh.

    Raises:
        ShapeError: the checkpoint is not BERT-shaped or has no such layer.
    """
    return new_student_of_class(encoder_class(task), checkpoint, task, config)


def new_student_of_class(
    kind: type[Student], checkpoint: Path, task: Task, config: StudentConfig, **fields: Any
) -> Student:
    """The same for another class of student: parts that `kind` adds are fresh, `fields` are of its configuration.

    The head is drawn before those parts, so that students of all classes have the same head with the same seed.
    """
    source = load_config(checkpoint)
    if source.model_type != "bert":
        raise ShapeError(
            f"{checkpoint}: expected a BERT-shaped checkpoint to cut a student from, got {source.model_type}"
        )
    if not config.layers or not all(0 <= layer < source.num_hidden_layers for layer in config.layers):
        raise ShapeError(
            f"student.layers: expected numbers from 0 to {source.num_hidden_layers - 1}, got {config.layers}"
        )
    shape = encoder_fields(source) | {"dtype": None, "num_hidden_layers": len(config.layers)} | label_fields(task)
    if not issubclass(kind, encoder_class(task)):
        raise ShapeError(f"{task.name}: {kind.__name__} has no head for rows of kind {task.kind}")
    fresh = encoder_class(task)(FilbertConfig(**shape)).state_dict()
    selected = _select_layers(read_weights(checkpoint), config.layers)
    weights = {n: value.float() for n, value in selected.items() if n in fresh and _fits(n, value, fresh[n])}
    missing = [name for name in fresh if name not in weights and not name.startswith(("bert.pooler.", "classifier."))]
    if missing:
        raise ShapeError(f"{checkpoint}: its weights lack {missing[0]} and {len(missing) - 1} others")
    student = kind(kind.config_class(**shape, **fields))
    student.load_state_dict(fresh | weights, strict=False)
    return student


def _fits(name: str, value: torch.Tensor, fresh: torch.Tensor) -> bool:
    """Whether a tensor of a checkpoint is taken: of a head only where it has the same classes."""
    return not name.startswith("classifier.") or value.shape == fresh.shape


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a BERT checkpoint by Hugging Face's names; the prefix `bert.` is added where it is missing."""
    tensors = load_tensors(folder)
    named = {name if name.startswith(("bert.", "classifier.")) else f"bert.{name}": v for name, v in tensors.items()}
    return {name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): v
            for name, v in named.items()}  # google-bert/bert-base-uncased still has TensorFlow's names  # fmt: skip


def _select_layers(weights: dict[str, torch.Tensor], layers: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The weights with these layers only, renumbered from 0."""
    kept = {name: value for name, value in weights.items() if not name.startswith(LAYER)}
    for new, old in enumerate(layers):
        start = f"{LAYER}{old}."
        kept |= {f"{LAYER}{new}.{n[len(start) :]}": v for n, v in weights.items() if n.startswith(start)}
    return kept


def label_fields(task: Task) -> dict[str, Any]:
    """The fields of a model's configuration that describe a task's labels."""
    names = list(task.labels) or ["score"]
    problems = {TaskKind.REGRESSION: "regression", TaskKind.MULTILABEL: "multi_label_classification"}
    return {
        "num_labels": task.outputs,
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": problems.get(task.kind, "single_label_classification"),
    }


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write config.json, model.safetensors and the tokenizer to `folder`: an ordinary Hugging Face folder."""
    if isinstance(model, FilbertForSequenceClassification) and model.config.is_plain:
        architecture = type(model).__name__.replace("Filbert", "Bert")
        BertConfig(**encoder_fields(model.config), architectures=[architecture]).save_pretrained(folder)
        weights = {name: value.contiguous().cpu() for name, value in model.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_with_provenance(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, recorder: RunRecorder
) -> None:
    """Save a trained model with its history and provenance and, if it has a classifier, log it to MLflow."""
    if not IS_MAIN_PROCESS:
        return
    save(model, tokenizer, folder)
    shutil.copyfile(recorder.history, folder / HISTORY)
    write_json(folder / PROVENANCE, recorder.provenance)
    if hasattr(model, "classifier"):
        recorder.model(load_model(folder), tokenizer)


def load_model(folder: Path, fresh_head: bool = False) -> PreTrainedModel:
    """A saved teacher or student, or with a `fresh_head` any checkpoint, in evaluation mode.

    Raises:
        ModelError: the folder holds no model, or only a part of one.
    """
    architectures = load_config(folder).architectures or [""]
    tagging = architectures[0].endswith("ForTokenClassification")
    auto_class = AutoModelForTokenClassification if tagging else AutoModelForSequenceClassification
    return load_pretrained(auto_class, folder, fresh_head).eval()


def load_prunable(folder: Path, task: Task) -> FilbertForSequenceClassification:
    """A saved student, a plain BERT as well, as our own encoder, which can be pruned.

    Raises:
        ShapeError: it is not BERT-shaped.
    """
    model = load_model(folder)
    if isinstance(model, FilbertForSequenceClassification):
        return model
    return new_student(folder, task, StudentConfig(tuple(range(model.config.num_hidden_layers))))


def forward_batch(model: nn.Module, batch: Batch, states: bool = False, logits_alone: bool = False) -> Any:
    """The output of any model, ours or Hugging Face's, for a batch: `.logits` [B, C], with `states` also `.hidden_states`.

    With `logits_alone` our own encoder computes its last layer for the first token alone, which is all that its head reads: the
    same logits with a sixth of that layer's operations. Targets of the batch that have the name of one of the model's inputs, such
    as a reference, are passed to it.
    """
    known = _parameter_names(type(model).forward)
    inputs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.mask}
    if "token_type_ids" in known:
        inputs["token_type_ids"] = batch.types
    if states:
        inputs["output_hidden_states"] = True
    if logits_alone and "logits_alone" in known:
        inputs["logits_alone"] = True
    return model(**inputs, **{name: value for name, value in batch.targets.items() if name in known})


@cache
def _parameter_names(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def predict_logits(model: nn.Module, rows: TokenizedDataset, size: int, device: torch.device) -> np.ndarray:
    """The logits [N, C] float32 of all rows, in tagging [tokens, C], in evaluation mode; batches hold rows of similar length."""
    order = np.argsort(rows.lengths, kind="stable")
    training, parts = model.training, []
    model.to(device).eval()
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            batch = rows.batch(order[start : start + size]).to(device)
            logits = forward_batch(model, batch, logits_alone=True).logits.float()
            parts.append((logits if rows.tags is None else logits[batch.mask]).cpu().numpy())
    model.train(training)
    by_length = np.concatenate(parts)
    positions = order if rows.tags is None else _token_positions(rows, order)
    out = np.empty_like(by_length)
    out[positions] = by_length
    return out


def _token_positions(rows: TokenizedDataset, order: np.ndarray) -> np.ndarray:
    """Where the tokens of rows in another order lie among all tokens."""
    lengths = rows.lengths[order]
    starts = np.cumsum(lengths) - lengths
    return np.repeat(rows.offsets[order] - starts, lengths) + np.arange(lengths.sum())
