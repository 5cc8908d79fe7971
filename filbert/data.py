"""Arrow rows become batches: tokenised once, grouped by length, padded to the longest of their batch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from filbert.tasks import Kind, Task

BUCKET = 50  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class EncodeConfig:
    """How text becomes pieces."""

    max_length: int  # pieces, special ones included; longer rows are cut


@dataclass(frozen=True)
class Batch:
    """Some rows, padded. Masks are bool and false on padding."""

    ids: Tensor  # [B, T] int64
    types: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool
    label: Tensor  # [B] int64, or float32 for regression
    teacher: Mapping[str, Tensor] = field(default_factory=dict)  # what the cache holds on these rows, [B, …]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Batch":
        teacher = {name: value.to(device, non_blocking=True) for name, value in self.teacher.items()}
        ids, types, mask, label = (
            t.to(device, non_blocking=True) for t in (self.ids, self.types, self.mask, self.label)
        )
        return Batch(ids, types, mask, label, teacher)


class Taught(Protocol):
    """The teacher's words on the rows of one split: something that can be asked for the rows of a batch."""

    def take(self, rows: np.ndarray) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Encoded:
    """The rows of one split as pieces, ragged: row i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray  # [pieces] uint32
    types: np.ndarray  # [pieces] uint8
    offsets: np.ndarray  # [N + 1] int64
    label: np.ndarray  # [N] int64 or float32
    idx: np.ndarray  # [N] int32
    hash: np.ndarray  # [N] int64
    pad: int
    teacher: Taught | None = None

    def __len__(self) -> int:
        return len(self.idx)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def taught(self, teacher: Taught) -> "Encoded":
        """The same rows, whose batches also carry the teacher's words."""
        return replace(self, teacher=teacher)

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows with these positions, padded to the longest of them."""
        lengths = self.lengths[rows]
        column = np.arange(lengths.max())
        mask = column < lengths[:, None]
        at = np.where(mask, self.offsets[rows][:, None] + column, 0)
        ids = np.where(mask, self.ids[at], self.pad).astype(np.int64)
        types = np.where(mask, self.types[at], 0).astype(np.int64)
        teacher = self.teacher.take(rows) if self.teacher else {}
        tensor = torch.from_numpy
        return Batch(tensor(ids), tensor(types), tensor(mask), tensor(self.label[rows]), teacher)

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows once, in their order: for evaluation."""
        for start in range(0, len(self), size):
            yield self.batch(np.arange(start, min(start + size, len(self))))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def encode(table: pa.Table, task: Task, tokenizer: PreTrainedTokenizerBase, config: EncodeConfig) -> Encoded:
    """Tokenise the rows of `table`; pairs share `max_length`, the longer text is cut first."""
    texts = [table[name].to_pylist() for name in task.columns]
    pieces = tokenizer(*texts, truncation=True, max_length=config.max_length, return_token_type_ids=True,
                       return_attention_mask=False)  # fmt: skip
    lengths = [len(row) for row in pieces["input_ids"]]
    label = table["label"].to_numpy()
    return Encoded(
        ids=np.fromiter((i for row in pieces["input_ids"] for i in row), np.uint32),
        types=np.fromiter((t for row in pieces["token_type_ids"] for t in row), np.uint8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        label=label.astype(np.float32 if task.kind is Kind.REGRESSION else np.int64),
        idx=table["idx"].to_numpy(),
        hash=table["hash"].to_numpy(),
        pad=tokenizer.pad_token_id or 0,
    )


def shuffled(lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch as positions of rows: shuffled, then rows of like length put together.

    Depends on nothing but its arguments, so that a resumed epoch continues where it stopped.
    """
    draw = np.random.default_rng((seed, epoch))
    order = draw.permutation(len(lengths))
    bucket = size * BUCKET
    groups = (order[start : start + bucket] for start in range(0, len(order), bucket))
    ordered = [group[np.argsort(lengths[group], kind="stable")] for group in groups]
    batches = [group[start : start + size] for group in ordered for start in range(0, len(group), size)]
    return [batches[i] for i in draw.permutation(len(batches))]
