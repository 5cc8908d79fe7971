"""Activations of a model as columns: recorded during a forward pass, stored without padding, restored to dense tensors.

| column | content | shape for a row of L tokens, W words |
| --- | --- | --- |
| `logits` | the output | C |
| `pooled` | the input of the classifier | D |
| `tags`, `tagged` | the same two of each token, of a token classifier | L × C, L × D |
| `hidden.i` | the hidden states after layer i; 0 is the embedding output | L × D |
| `words.i` | the same of each word's first token, for a student with another tokenizer | W × D |
| `attention.i` | the scores QKᵀ/√d of layer i before the softmax (Jiao et al. 2020, TinyBERT, equation 7) | heads × L × L |
| `values.i` | the value relations VVᵀ/√d of layer i before the softmax (Wang et al. 2020, MiniLM, equation 5) | heads × L × L |

Layers count from 1. The same code reads the teacher that is cached and the student that learns from the cache.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from filbert import FilbertError
from filbert.data.batches import Batch
from filbert.data.tasks import TaskKind
from filbert.models import checkpoints

PROJECTIONS = {"attention": ("query", "key"), "values": ("value", "value")}


class ActivationError(FilbertError):
    """There is no such column, or a model does not have it."""


@dataclass(frozen=True)
class Layout:
    """The shape of one row of a column, by its number of units and its width."""

    unit: str  # "row" (a row has one), "token" or "word"
    shape: Callable[[int, int], tuple[int, ...]]  # units, width -> the shape of one row; its last axis is one vector
    width: int  # the axis of that shape that is the width

    def units(self, size: int, width: int) -> int:
        """The number of units of a row of `size` values."""
        vectors = size // width
        return math.isqrt(vectors) if self is PER_TOKEN_PAIR else vectors


PER_ROW = Layout("row", lambda n, width: (width,), 0)
PER_TOKEN = Layout("token", lambda n, width: (n, width), 1)
PER_WORD = Layout("word", lambda n, width: (n, width), 1)
PER_TOKEN_PAIR = Layout("token", lambda n, heads: (heads, n, n), 0)
LAYOUTS = dict.fromkeys(("logits", "pooled"), PER_ROW) | dict.fromkeys(("tags", "tagged", "hidden"), PER_TOKEN)
LAYOUTS |= {"words": PER_WORD} | dict.fromkeys(("attention", "values"), PER_TOKEN_PAIR)
STATES = ("hidden", "words")
LAYERED = (*STATES, "attention", "values")
TOKEN_COLUMNS = {"logits": "tags", "pooled": "tagged"}
FLOAT32_COLUMNS = ("logits", "tags")  # always stored as float32


def parse_column(column: str) -> tuple[str, int]:
    """The kind and layer of a column's name; layer 0 where it has none.

    Raises:
        ActivationError: there is no such column.
    """
    kind, _, layer = column.partition(".")
    if kind not in LAYOUTS or bool(layer) != (kind in LAYERED) or (layer and not layer.isdigit()):
        raise ActivationError(
            f"no column `{column}`; known are logits, pooled, tags, tagged, hidden.i, words.i, attention.i and values.i"
        )
    return kind, int(layer or 0)


def column_for_task(kind: TaskKind, column: str) -> str:
    """The column that stands for `logits` or `pooled` in a task of some kind: in tagging that of each token."""
    return TOKEN_COLUMNS.get(column, column) if kind is TaskKind.TAGGING else column


def column_layout(column: str) -> Layout:
    """The layout of a column by its name."""
    return LAYOUTS[parse_column(column)[0]]


class ActivationRecorder:
    """Runs a model on batches and records columns: dense tensors with undefined values on padding; gradients flow."""

    def __init__(self, model: nn.Module, columns: Iterable[str]):
        """Register hooks on the layers that the columns name.

        Raises:
            ActivationError: the model has no such layer, or its modules do not have BERT's names.
        """
        self.model, self.columns = model, tuple(columns)
        self.recorded: dict[tuple[str, int], Tensor] = {}
        self.hooks: list[RemovableHandle] = []
        layers = self._check_depth()
        for kind, layer in map(parse_column, self.columns):
            for part in set(PROJECTIONS.get(kind, ())):
                self._record((part, layer), f"layer.{layer - 1}.attention.self.{part}", layers)
            if kind in ("pooled", "tagged"):
                head = _module(model, "classifier", "its classifier")
                if not isinstance(head, nn.Linear):
                    head = _module(head, "out_proj", "the last part of its classifier")
                self.hooks.append(head.register_forward_pre_hook(self._record_pooled))

    def __enter__(self) -> "ActivationRecorder":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def __call__(self, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """The model's output for a batch, and each column: logits, pooled [B, width]; hidden [B, T, D]; words [B, W, D];
        attention, values [B, heads, T, T]. Where no column has a layer, the last one is computed for the first token alone."""
        kinds = {parse_column(column)[0] for column in self.columns}
        output = checkpoints.forward_batch(self.model, batch, not kinds.isdisjoint(STATES), kinds.isdisjoint(LAYERED))
        values = {column: self._column(*parse_column(column), output, batch) for column in self.columns}
        self.recorded.clear()
        return output, values

    def _column(self, kind: str, layer: int, output: Any, batch: Batch) -> Tensor:
        if kind in FLOAT32_COLUMNS:
            return output.logits.float()
        if kind in ("pooled", "tagged"):
            return self.recorded["pooled", 0]
        if kind == "hidden":
            return output.hidden_states[layer]
        if kind == "words":
            return first_token_states(output.hidden_states[layer], batch)
        size = head_size(self.model)
        left, right = (
            self.recorded[part, layer].unflatten(-1, (-1, size)).transpose(1, 2) for part in PROJECTIONS[kind]
        )
        right = right[:, :, : batch.ids.shape[1]]  # of a student that also attends to a reference only its own tokens
        return left @ right.transpose(-1, -2) / size**0.5

    def _record(self, key: tuple[str, int], suffix: str, layers: int) -> None:
        def record(_: nn.Module, __: Any, output: Tensor) -> None:
            self.recorded[key] = output

        self.hooks.append(_module(self.model, suffix, f"layer {key[1]} of {layers}").register_forward_hook(record))

    def _record_pooled(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.recorded["pooled", 0] = inputs[0]

    def _check_depth(self) -> int:
        config: Any = self.model.config
        layers = config.num_hidden_layers
        for column in self.columns:
            kind, layer = parse_column(column)
            lowest = 1 if LAYOUTS[kind] is PER_TOKEN_PAIR else 0
            if kind in LAYERED and not lowest <= layer <= layers:
                raise ActivationError(f"column `{column}`: expected a layer from {lowest} to {layers}, got {layer}")
        return layers


def head_size(model: nn.Module) -> int:
    """The width of one attention head."""
    config: Any = model.config
    return getattr(config, "head_size", 0) or config.hidden_size // config.num_attention_heads


def first_token_states(states: Tensor, batch: Batch) -> Tensor:
    """The states of the tokens that begin a word, by the word's number: [B, W, D] of states [B, T, D], zero where none does.

    Raises:
        ActivationError: the rows were tokenised without word numbers.
    """
    if batch.word is None:
        raise ActivationError("word-aligned columns need rows that were tokenised with word numbers")
    out = states.new_zeros(len(states), int(batch.word.max()) + 2, states.shape[-1])
    slot = torch.where(
        batch.word < 0, out.shape[1] - 1, batch.word
    )  # tokens that begin no word go to a last slot, dropped
    return out.scatter(1, slot[..., None].expand_as(states), states)[:, :-1]


def unit_counts(column: str, batch: Batch) -> Tensor:
    """The number of units of each row of a batch: [B]."""
    unit = column_layout(column).unit
    if unit == "row":
        return torch.ones(len(batch), dtype=torch.int64, device=batch.ids.device)
    return batch.mask.sum(1) if unit == "token" or batch.word is None else batch.word.amax(1) + 1


def row_shapes(column: str, counts: Iterable[int], width: int) -> list[tuple[int, ...]]:
    """The shape of each row of a column without padding, from its number of units."""
    return [column_layout(column).shape(count, width) for count in counts]


def remove_padding(dense: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The rows of a dense array without padding: views, row i with shape `shapes[i]`."""
    return [row[tuple(map(slice, shape))] for row, shape in zip(dense, shapes, strict=True)]


def add_padding(rows: list[np.ndarray], shapes: list[tuple[int, ...]]) -> np.ndarray:
    """Flat rows with these shapes as one dense array, zero on padding: the inverse of `remove_padding`."""
    out = np.zeros((len(rows), *map(max, zip(*shapes, strict=True))), rows[0].dtype)
    for place, row, shape in zip(out, rows, shapes, strict=True):
        place[tuple(map(slice, shape))] = row.reshape(shape)
    return out


def column_widths(columns: Mapping[str, Tensor]) -> dict[str, int]:
    """The width of each column: classes, hidden size, or heads."""
    return {column: dense.shape[1:][column_layout(column).width] for column, dense in columns.items()}


def _module(model: nn.Module, suffix: str, what: str) -> nn.Module:
    found = [module for name, module in model.named_modules() if name == suffix or name.endswith(f".{suffix}")]
    if not found:
        raise ActivationError(
            f"{type(model).__name__} has no module `{suffix}` ({what}): this column can be recorded of BERT, RoBERTa, ELECTRA "
            "and other models with BERT's names; of this one use `logits` and `hidden.i`"
        )
    return found[0]
