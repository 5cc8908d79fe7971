"""Cached words, mapped: rows found by their keys, ragged columns read into dense tensors. One copy, into the batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from filbert.data.batches import TokenizedDataset
from filbert.models.activations import add_padding, column_layout

KEYS = ("idx", "hash", "tokens")
SCALE = ".scale"


@dataclass(frozen=True)
class ShardIndex:
    """The rows of some shards: mapped record batches, the keys of their rows, and where each row lies."""

    batches: list[pa.RecordBatch]
    place: np.ndarray  # [rows, 2] int32: record batch, row in it
    key: dict[str, np.ndarray]  # KEYS, [rows]
    order: np.ndarray  # [rows] sorts row_keys

    @classmethod
    def of(cls, readers: list[pa.RecordBatchFileReader]) -> "ShardIndex":
        batches = [reader.get_batch(i) for reader in readers for i in range(reader.num_record_batches)]
        sizes = [batch.num_rows for batch in batches]
        within = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        place = np.stack([np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), within], axis=1)
        key = {name: np.concatenate([batch[name].to_numpy() for batch in batches]) for name in KEYS}
        return cls(batches, place, key, np.argsort(row_keys(key["idx"], key["hash"]), kind="stable"))

    def find(self, rows: TokenizedDataset) -> tuple[np.ndarray, np.ndarray]:
        """Where each of `rows` lies, and which of them [N, bool] do."""
        ours, theirs = row_keys(rows.idx, rows.hash), row_keys(self.key["idx"], self.key["hash"])
        at = self.order[np.minimum(np.searchsorted(theirs, ours, sorter=self.order), len(theirs) - 1)]
        return at, (self.key["hash"][at] == rows.hash) & (self.key["idx"][at] == rows.idx)


@dataclass(frozen=True)
class RaggedColumn:
    """A column of ragged rows: views of mapped memory, one per record batch."""

    values: list[np.ndarray]
    offsets: list[np.ndarray]

    @classmethod
    def of(cls, batches: list[pa.RecordBatch], name: str) -> "RaggedColumn":
        arrays = [batch[name] for batch in batches]
        return cls([array.values.to_numpy() for array in arrays], [array.offsets.to_numpy() for array in arrays])

    def rows(self, place: np.ndarray) -> list[np.ndarray]:
        return [self.values[b][self.offsets[b][r] : self.offsets[b][r + 1]] for b, r in place.tolist()]


@dataclass(frozen=True)
class CachedColumn:
    """One column in all the shards that hold it."""

    held: ShardIndex
    width: int
    values: RaggedColumn
    scales: RaggedColumn | None  # of int8 values, one per vector


@dataclass(frozen=True)
class CachedTargets:
    """Columns of the cache, aligned to the rows of one split."""

    columns: dict[str, CachedColumn]
    at: dict[str, np.ndarray]  # [N] by column: where each row of the split lies
    aliases: Mapping[str, str] = field(default_factory=dict)  # columns that batches carry under another name

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Each column (or those named) of some rows as one dense tensor (shapes in columns.py), zero on padding."""
        asked = columns or self.columns
        return {self.aliases.get(column, column): self._dense(column, self.at[column][rows]) for column in asked}

    def _dense(self, column: str, at: np.ndarray) -> Tensor:
        stored, form = self.columns[column], column_layout(column)
        place = stored.held.place[at]
        rows = stored.values.rows(place)
        shapes = [form.shape(form.units(len(row), stored.width), stored.width) for row in rows]
        dense = torch.from_numpy(add_padding(rows, shapes))
        if stored.scales is None:
            return dense
        scales = add_padding(stored.scales.rows(place), [shape[:-1] or (1,) for shape in shapes])
        return dense.float() * torch.from_numpy(scales).view(*dense.shape[:-1], 1)


def quantize_int8(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [..., D] as int8 and a float32 scale for each [...], by which they are to be multiplied."""
    scale = np.abs(vectors).max(-1).clip(1e-30).astype(np.float32) / np.float32(127)
    return np.rint(vectors / scale[..., None]).astype(np.int8), scale


def row_keys(idx: np.ndarray, text_hash: np.ndarray) -> np.ndarray:
    """One int64 per row; that it stands for (idx, hash) is to be checked after a search."""
    return text_hash ^ (idx.astype(np.int64) * np.int64(0x1E3779B97F4A7C15))
