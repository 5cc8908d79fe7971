"""What a model can be asked, column by column: read off it while it answers, packed without padding, laid out again.

| column | what | of a row of L tokens, W words |
| --- | --- | --- |
| `logits` | what it answers | C |
| `pooled` | what its classifier reads | D |
| `tags`, `tagged` | the same two of each token, of a model that tags them | L × C, L × D |
| `hidden.i` | the state after layer i; 0 is the embedding output | L × D |
| `words.i` | the same, of each word's first token: for a student with another tokenizer | W × D |
| `attention.i` | the scores QKᵀ/√d of layer i before the softmax (Jiao et al. 2020, TinyBERT, equation 7) | heads × L × L |
| `values.i` | the value relations VVᵀ/√d of layer i before the softmax (Wang et al. 2020, MiniLM, equation 5) | heads × L × L |

Layers count from 1. The teacher that is cached and the student that learns from the cache are listened to alike.
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
    """A model cannot be asked this."""


@dataclass(frozen=True)
class Layout:
    """How one row of a column lies in memory, by its number of units and its width."""

    unit: str  # what a row has n of: "row" (n is 1), "token" or "word"
    shape: Callable[[int, int], tuple[int, ...]]  # n, width -> the shape of one row; its last axis is one vector
    width: int  # which axis of that shape is the width

    def units(self, size: int, width: int) -> int:
        """How many units a row of `size` values has."""
        vectors = size // width
        return math.isqrt(vectors) if self is PER_TOKEN_PAIR else vectors


PER_ROW = Layout("row", lambda n, width: (width,), 0)
PER_TOKEN = Layout("token", lambda n, width: (n, width), 1)
PER_WORD = Layout("word", lambda n, width: (n, width), 1)
PER_TOKEN_PAIR = Layout("token", lambda n, heads: (heads, n, n), 0)
LAYOUTS = dict.fromkeys(("logits", "pooled"), PER_ROW) | dict.fromkeys(("tags", "tagged", "hidden"), PER_TOKEN)
LAYOUTS |= {"words": PER_WORD} | dict.fromkeys(("attention", "values"), PER_TOKEN_PAIR)
LAYERED = ("hidden", "words", "attention", "values")
TOKEN_COLUMNS = {"logits": "tags", "pooled": "tagged"}
FLOAT32_COLUMNS = ("logits", "tags")  # stored as float32 whatever the states are stored as


def parse_column(column: str) -> tuple[str, int]:
    """The kind and layer of a column's name; layer 0 where it has none.

    Raises:
        ColumnError: there is no such column.
    """
    kind, _, layer = column.partition(".")
    if kind not in LAYOUTS or bool(layer) != (kind in LAYERED) or (layer and not layer.isdigit()):
        raise ActivationError(
            f"no column `{column}`; known are logits, pooled, tags, tagged, hidden.i, words.i, attention.i and values.i"
        )
    return kind, int(layer or 0)


def column_for_task(kind: TaskKind, column: str) -> str:
    """The column that a task of some kind has for a method's `logits` or `pooled`: of tagged rows they are of each token."""
    return TOKEN_COLUMNS.get(column, column) if kind is TaskKind.TAGGING else column


def column_layout(column: str) -> Layout:
    return LAYOUTS[parse_column(column)[0]]


class ActivationRecorder:
    """Asks a model and reads columns off it: dense tensors, meaningless on padding; gradients flow."""

    def __init__(self, model: nn.Module, columns: Iterable[str]):
        """Listen in on the layers the columns name.

        Raises:
            ColumnError: the model has no such layer, or none whose parts have the names it is known by.
        """
        self.model, self.columns = model, tuple(columns)
        self.recorded: dict[tuple[str, int], Tensor] = {}
        self.hooks: list[RemovableHandle] = []
        layers = self._check_depth()
        for kind, layer in map(parse_column, self.columns):
            for part in set(PROJECTIONS.get(kind, ())):
                self._listen((part, layer), f"layer.{layer - 1}.attention.self.{part}", layers)
            if kind in ("pooled", "tagged"):
                head = _module(model, "classifier", "its classifier")
                head = (
                    head
                    if isinstance(head, nn.Linear)
                    else _module(head, "out_proj", "the last part of its classifier")
                )
                self.hooks.append(head.register_forward_pre_hook(self._keep_pooled))

    def __enter__(self) -> "ActivationRecorder":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def __call__(self, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """The answer to a batch and each column: logits, pooled [B, width]; hidden [B, T, D]; words [B, W, D];
        attention, values [B, heads, T, T]."""
        states = any(parse_column(column)[0] in ("hidden", "words") for column in self.columns)
        answer = checkpoints.forward_batch(self.model, batch, states)
        said = {column: self._read(*parse_column(column), answer, batch) for column in self.columns}
        self.recorded.clear()
        return answer, said

    def _read(self, kind: str, layer: int, answer: Any, batch: Batch) -> Tensor:
        if kind in FLOAT32_COLUMNS:
            return answer.logits.float()
        if kind in ("pooled", "tagged"):
            return self.recorded["pooled", 0]
        if kind == "hidden":
            return answer.hidden_states[layer]
        if kind == "words":
            return first_token_states(answer.hidden_states[layer], batch)
        size = head_size(self.model)
        left, right = (
            self.recorded[part, layer].unflatten(-1, (-1, size)).transpose(1, 2) for part in PROJECTIONS[kind]
        )
        right = right[:, :, : batch.ids.shape[1]]  # a student that also attends to a reference: its own tokens alone
        return left @ right.transpose(-1, -2) / size**0.5

    def _listen(self, key: tuple[str, int], suffix: str, layers: int) -> None:
        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            self.recorded[key] = output

        self.hooks.append(_module(self.model, suffix, f"layer {key[1]} of {layers}").register_forward_hook(keep))

    def _keep_pooled(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
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
    """The states [B, T, D] of the tokens that begin a word, by the word's number: [B, W, D], zero where none begins.

    Raises:
        ColumnError: the rows were encoded without their words.
    """
    if batch.word is None:
        raise ActivationError("word-aligned columns need rows that were encoded with their words")
    out = states.new_zeros(len(states), int(batch.word.max()) + 2, states.shape[-1])
    at = torch.where(batch.word < 0, out.shape[1] - 1, batch.word)  # tokens that begin no word share a slot, cut off
    return out.scatter(1, at[..., None].expand_as(states), states)[:, :-1]


def unit_counts(column: str, batch: Batch) -> Tensor:
    """How many units each row of a batch has: [B]."""
    unit = column_layout(column).unit
    if unit == "row":
        return torch.ones(len(batch), dtype=torch.int64, device=batch.ids.device)
    return batch.mask.sum(1) if unit == "token" or batch.word is None else batch.word.amax(1) + 1


def row_shapes(column: str, counts: Iterable[int], width: int) -> list[tuple[int, ...]]:
    """The shape of each row of a column without padding, by its number of units."""
    return [column_layout(column).shape(count, width) for count in counts]


def remove_padding(dense: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The rows of a dense array without their padding: views, row i of the shape `shapes[i]`."""
    return [row[tuple(map(slice, shape))] for row, shape in zip(dense, shapes, strict=True)]


def add_padding(rows: list[np.ndarray], shapes: list[tuple[int, ...]]) -> np.ndarray:
    """Flat rows with these shapes in one dense array, zero on padding: what `pack` took apart."""
    out = np.zeros((len(rows), *map(max, zip(*shapes, strict=True))), rows[0].dtype)
    for place, row, shape in zip(out, rows, shapes, strict=True):
        place[tuple(map(slice, shape))] = row.reshape(shape)
    return out


def column_widths(said: Mapping[str, Tensor]) -> dict[str, int]:
    """The width of each column: classes, hidden size, or heads."""
    return {column: dense.shape[1:][column_layout(column).width] for column, dense in said.items()}


def _module(model: nn.Module, suffix: str, what: str) -> nn.Module:
    found = [module for name, module in model.named_modules() if name == suffix or name.endswith(f".{suffix}")]
    if not found:
        raise ActivationError(
            f"{type(model).__name__} has no module `{suffix}` ({what}): this column can be read off BERT, RoBERTa, ELECTRA "
            "and other models with BERT's names; take `logits` and `hidden.i` from this one"
        )
    return found[0]
