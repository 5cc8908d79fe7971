"""The cache of the teacher's outputs: Arrow files that are computed once, appended to, verified, and joined to rows.

A cache is one folder of shards (shards.py) for each partition, each filled by a stage of its own, on whatever machine. The
schema of a shard has the fingerprint of its teacher and settings; each row has its `idx` and the hashes of its text and of its
token ids. Each column (models/intermediate_outputs.py) is a ragged list per row: float32 or float16 values, or int8 values with
one float32 scale per vector in `{column}.scale`. What does not fit is refused.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from filbert import FilbertError
from filbert.cache.cached_targets import SCALE, CachedColumn, CachedTargets, RaggedColumn, ShardIndex
from filbert.cache.shards import MANIFEST, ShardError, ShardFolder
from filbert.data.batches import TokenizedDataset, TokenizerConfig
from filbert.models.intermediate_outputs import (
    ActivationRecorder,
    column_layout,
    remove_padding,
    row_shapes,
    unit_counts,
)
from filbert.runtime.config import NonNegative, NonNegativeInt, Positive, PositiveInt
from filbert.runtime.device import autocast, precision
from filbert.runtime.files import sha256, weights_hash

FINGERPRINT = b"filbert.fingerprint"
WIDTH = b"filbert.width"


class CacheError(FilbertError):
    """The cache does not have this teacher's outputs for these rows."""


@dataclass(frozen=True)
class CacheConfig:
    """How the teacher's outputs are computed and stored."""

    states: Literal["float16", "int8"]  # of all columns but logits; int8 has a scale per vector
    batch_size: PositiveInt
    shard_mb: PositiveInt
    budget_gb: Positive  # of a partition; a larger one is refused before the teacher runs
    verify_rows: NonNegativeInt  # compared with the live teacher whenever the cache is opened for training
    tolerance: (
        NonNegative  # largest relative difference from the live teacher, root mean square, that verification accepts
    )


@dataclass(frozen=True)
class Fingerprint:
    """The teacher and the settings of its outputs: equal fingerprints mean equal outputs for equal rows."""

    teacher: str  # SHA-256 over the weights
    tokenizer: str  # SHA-256 of tokenizer.json
    max_length: int
    states: str  # as in CacheConfig
    precision: str  # of the teacher's arithmetic


def cache_fingerprint(teacher: Path, encode: TokenizerConfig, config: CacheConfig, device: torch.device) -> Fingerprint:
    """The fingerprint of the teacher saved in a folder."""
    tokenizer = sha256(teacher / "tokenizer.json")
    return Fingerprint(weights_hash(teacher), tokenizer, encode.max_length, config.states, precision(device))


class TeacherCache:
    """The cache of a task, opened for reading."""

    def __init__(self, folders: Sequence[Path], expected: Fingerprint):
        """Read the manifests of all partitions; shards are mapped when one of their columns is read.

        Raises:
            CacheError: there is no cache, a partition is missing, or a manifest is damaged or another's.
        """
        try:
            self.parts = [ShardFolder(folder) for folder in folders]
            for part in self.parts:
                part.check_sizes()
        except ShardError as error:
            raise CacheError(f"{error}; run `dvc repro`") from error
        self.expected = expected
        self.folder = folders[0] if len(folders) == 1 else folders[0].parent  # named in errors
        self._indices: dict[frozenset[Path], ShardIndex] = {}
        if missing := [part.folder for part in self.parts if not part.has_manifest]:
            raise CacheError(f"{missing[0]}: no teacher cache; run `dvc repro` to make it")

    @property
    def digest(self) -> str:
        """Twelve hex digits that change with anything in the cache."""
        return sha256(*(part.folder / MANIFEST for part in self.parts))[:12]

    @property
    def bytes(self) -> int:
        """The bytes of all shards."""
        return sum(part.bytes for part in self.parts)

    def column(self, name: str) -> CachedColumn:
        """One column, in all shards that have it.

        Raises:
            CacheError: no shard has it, or one is damaged or was made by another teacher or with other settings. Another
                precision is accepted, so that a cache can move between machines: `verify` decides.
        """
        shards = [
            (part, shard) for part in self.parts for shard, entry in part.entries.items() if name in entry.columns
        ]
        if not shards:
            raise CacheError(f"{self.folder}: no column `{name}`, only {', '.join(self._names())}; run `dvc repro`")
        index = self._index(shards)
        schema, scale = index.batches[0].schema, f"{name}{SCALE}"
        return CachedColumn(
            index=index,
            width=int(schema.field(name).metadata[WIDTH]),
            values=RaggedColumn.of(index.batches, name),
            scales=RaggedColumn.of(index.batches, scale) if scale in schema.names else None,
        )

    def _index(self, shards: list[tuple[ShardFolder, str]]) -> ShardIndex:
        """The index of some shards, made once for all their columns."""
        files = frozenset(part.folder / name for part, name in shards)
        if files not in self._indices:
            readers = [open_shard(*shard, self.expected, except_for="precision") for shard in shards]
            self._indices[files] = ShardIndex.of(readers)
        return self._indices[files]

    def width(self, name: str) -> int:
        """The width of a column: classes, hidden size or heads."""
        return self.column(name).width

    def has(self, rows: TokenizedDataset, columns: Sequence[str]) -> bool:
        """Whether it has all of these columns for all of `rows`."""
        known = set(columns) <= set(self._names())
        return known and all(self.column(name).index.find(rows)[1].all() for name in columns)

    def _names(self) -> list[str]:
        return sorted({name for part in self.parts for entry in part.entries.values() for name in entry.columns})

    def on(self, rows: TokenizedDataset, columns: Sequence[str]) -> CachedTargets:
        """The teacher's outputs for `rows`, joined by row number and text hash.

        Raises:
            CacheError: a column or a row is missing, or a column of the teacher's tokens is wanted for rows with other tokens.
        """
        found, tokens, numbers = {name: self.column(name) for name in columns}, rows.token_hashes, {}
        joined = {
            id(index): self._join(rows, index) for index in {id(c.index): c.index for c in found.values()}.values()
        }
        for name, column in found.items():
            numbers[name] = joined[id(column.index)]
            other = column.index.keys["tokens"][numbers[name]] != tokens
            if column_layout(name).unit == "token" and other.any():
                raise CacheError(
                    f"{self.folder}: `{name}` belongs to the teacher's tokens, but {other.sum()} of {len(rows)} rows have others, "
                    f"the first is idx {rows.idx[other][0]}; with another tokenizer use logits, pooled or words.i"
                )
        return CachedTargets(found, numbers)

    def _join(self, rows: TokenizedDataset, index: ShardIndex) -> np.ndarray:
        numbers, present = index.find(rows)
        if not present.all():
            raise CacheError(
                f"{self.folder}: no outputs for {(~present).sum()} of {len(rows)} rows, the first is idx {rows.idx[~present][0]}; "
                "the rows have changed since the cache was made: run `dvc repro`"
            )
        return numbers

    def verify(
        self,
        rows: TokenizedDataset,
        columns: Sequence[str],
        teacher: nn.Module,
        config: CacheConfig,
        device: torch.device,
    ) -> dict[str, float]:
        """Run the teacher on `rows`, a sample, and compare; by column the largest difference of any value.

        Raises:
            CacheError: the root mean square of the differences is over `config.tolerance` of that of the values.
        """
        sample = np.arange(len(rows))
        with ActivationRecorder(teacher.to(device).eval(), columns) as record, torch.inference_mode(), autocast(device):
            batch = rows.batch(sample).to(device)
            live = record(batch)[1]
        cached, largest = self.on(rows, columns).take(sample), {}
        for name in columns:
            shapes = row_shapes(name, unit_counts(name, batch).tolist(), self.width(name))
            expected, stored = (
                np.concatenate([row.ravel() for row in remove_padding(outputs[name].float().cpu().numpy(), shapes)])
                for outputs in (live, cached)
            )
            largest[name] = float(np.abs(expected - stored).max())
            relative = float(np.linalg.norm(expected - stored) / np.linalg.norm(expected))
            if not relative <= config.tolerance:
                raise CacheError(
                    f"{self.folder}: `{name}` of the live teacher differs from the cache by {relative:.3g} (root mean square, "
                    f"relative; the largest by {largest[name]:.3g}) on {len(sample)} rows, over cache.tolerance = "
                    f"{config.tolerance}; delete the folder and run `dvc repro`"
                )
        return largest


def open_shard(shards: ShardFolder, name: str, expected: Fingerprint, except_for: str = "") -> pa.RecordBatchFileReader:
    """Map a shard that has the expected fingerprint; `except_for` is a field that may differ.

    Raises:
        CacheError: it is damaged, or has another fingerprint.
    """
    try:
        reader = shards.open(name)
    except ShardError as error:
        raise CacheError(f"{error}; run `dvc repro`") from error
    found = json.loads((reader.schema.metadata or {}).get(FINGERPRINT, b"{}"))
    for key, value in asdict(expected).items():
        if key != except_for and found.get(key) != value:
            raise CacheError(
                f"{shards.folder / name}: made with another {key}: expected {value}, got {found.get(key)}; run `dvc repro`"
            )
    return reader
