"""Cached columns in mapped memory: rows are found by their keys, values are copied once, into the dense tensors of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from filbert.data.batches import TokenizedDataset
from filbert.models.intermediate_outputs import add_padding, column_layout

KEYS = ("idx", "hash", "tokens")  # columns of a shard: row number, hash of the text, hash of the token ids
SCALE = ".scale"  # suffix of the column of int8 scales


@dataclass(frozen=True)
class ShardIndex:
    """The rows of some shards: their mapped record batches, and the keys and location of each row."""

    batches: list[pa.RecordBatch]
    location: np.ndarray  # [rows, 2] int32: record batch, row in it
    keys: dict[str, np.ndarray]  # by name in KEYS, [rows]
    order: np.ndarray  # [rows] sorts row_keys

    @classmethod
    def of(cls, readers: list[pa.RecordBatchFileReader]) -> "ShardIndex":
        """The index of all rows of opened shards."""
        batches = [reader.get_batch(i) for reader in readers for i in range(reader.num_record_batches)]
        sizes = [batch.num_rows for batch in batches]
        within = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        location = np.stack([np.repeat(np.arange(len(sizes), dtype=np.int32), sizes), within], axis=1)
        keys = {name: np.concatenate([batch[name].to_numpy() for batch in batches]) for name in KEYS}
        return cls(batches, location, keys, np.argsort(row_keys(keys["idx"], keys["hash"]), kind="stable"))

    def find(self, rows: TokenizedDataset) -> tuple[np.ndarray, np.ndarray]:
        """The number in the index of each of `rows` [N], and whether it is there [N] bool."""
        wanted, stored = row_keys(rows.idx, rows.hash), row_keys(self.keys["idx"], self.keys["hash"])
        numbers = self.order[np.minimum(np.searchsorted(stored, wanted, sorter=self.order), len(stored) - 1)]
        return numbers, (self.keys["hash"][numbers] == rows.hash) & (self.keys["idx"][numbers] == rows.idx)


@dataclass(frozen=True)
class RaggedColumn:
    """A column whose rows have different lengths: for each record batch a view of its values and offsets in mapped memory."""

    values: list[np.ndarray]
    offsets: list[np.ndarray]

    @classmethod
    def of(cls, batches: list[pa.RecordBatch], name: str) -> "RaggedColumn":
        arrays = [batch[name] for batch in batches]
        return cls([array.values.to_numpy() for array in arrays], [array.offsets.to_numpy() for array in arrays])

    def rows(self, location: np.ndarray) -> list[np.ndarray]:
        """The values of rows at locations [N, 2]: views."""
        return [self.values[b][self.offsets[b][r] : self.offsets[b][r + 1]] for b, r in location.tolist()]


@dataclass(frozen=True)
class CachedColumn:
    """One column in all shards that have it."""

    index: ShardIndex
    width: int
    values: RaggedColumn
    scales: RaggedColumn | None  # of int8 values, one per vector

    def dense(self, name: str, numbers: np.ndarray) -> Tensor:
        """The rows with these numbers in the index as one dense tensor, zero on padding."""
        location, layout = self.index.location[numbers], column_layout(name)
        rows = self.values.rows(location)
        shapes = [layout.shape(layout.units(len(row), self.width), self.width) for row in rows]
        dense = torch.from_numpy(add_padding(rows, shapes))
        if self.scales is None:
            return dense
        scales = add_padding(self.scales.rows(location), [shape[:-1] or (1,) for shape in shapes])
        return dense.float() * torch.from_numpy(scales).view(*dense.shape[:-1], 1)


@dataclass(frozen=True)
class CachedTargets:
    """Columns of the cache for the rows of one split: what their batches carry as targets."""

    columns: dict[str, CachedColumn]
    numbers: dict[str, np.ndarray]  # [N] by column: the number of each row of the split in the column's index
    aliases: Mapping[str, str] = field(default_factory=dict)  # columns that batches carry under another name

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> dict[str, Tensor]:
        """All columns, or some, of these rows of the split as dense tensors (shapes in models/intermediate_outputs.py), zero on
        padding."""
        return {
            self.aliases.get(name, name): self.columns[name].dense(name, self.numbers[name][rows])
            for name in columns or self.columns
        }


def quantize_int8(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [..., D] as int8 and a float32 scale for each [...], by which they are to be multiplied."""
    scale = np.abs(vectors).max(-1).clip(1e-30).astype(np.float32) / np.float32(127)
    return np.rint(vectors / scale[..., None]).astype(np.int8), scale


def row_keys(idx: np.ndarray, text_hash: np.ndarray) -> np.ndarray:
    """One int64 for each pair (idx, hash); two pairs may share one, so a match is to be checked."""
    return text_hash ^ (idx.astype(np.int64) * np.int64(0x1E3779B97F4A7C15))
