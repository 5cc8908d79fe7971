"""The teacher's words as Arrow files: computed once, appended to, verified, joined to rows; a mismatch is refused.

A cache is a folder of parts, each a folder of shards (shards.py) that a stage of its own fills, on whatever machine. Each shard's
schema carries the fingerprint of what was asked whom; each row carries its `idx` and the hashes of its text and of its tokens. What
the teacher says of a row is a ragged list per column (columns.py): float32 or float16 values, or int8 with one float32 scale per
vector in `{column}.scale`.
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
from filbert.cache.shards import MANIFEST, ShardError, ShardFolder
from filbert.cache.targets import SCALE, CachedColumn, CachedTargets, RaggedColumn, ShardIndex
from filbert.data.batches import TokenizedDataset, TokenizerConfig
from filbert.models.activations import ActivationRecorder, column_layout, remove_padding, row_shapes, unit_counts
from filbert.runtime.device import autocast, precision
from filbert.runtime.files import sha256, weights_hash

FINGERPRINT = b"filbert.fingerprint"
WIDTH = b"filbert.width"


class CacheError(FilbertError):
    """The cache does not hold this teacher's words on these rows."""


@dataclass(frozen=True)
class CacheConfig:
    """How the teacher is asked, and how its words are kept."""

    states: Literal["float16", "int8"]  # of everything but logits; int8 has a scale per vector
    batch_size: int
    shard_mb: int
    budget_gb: float  # a part that would grow larger is refused before the teacher is asked
    verify_rows: int  # rows asked again, live, whenever the cache is opened for training
    tolerance: float  # largest difference from the live teacher that verification accepts, relative, root mean square


@dataclass(frozen=True)
class Fingerprint:
    """What was asked whom: equal fingerprints mean equal words on equal rows."""

    teacher: str  # SHA-256 over the weights
    tokenizer: str  # SHA-256 of tokenizer.json
    max_length: int
    states: str  # how states are stored
    precision: str  # of the teacher's arithmetic


def cache_fingerprint(teacher: Path, encode: TokenizerConfig, config: CacheConfig, device: torch.device) -> Fingerprint:
    """The fingerprint of the teacher saved in a folder."""
    tokenizer = sha256(teacher / "tokenizer.json")
    return Fingerprint(weights_hash(teacher), tokenizer, encode.max_length, config.states, precision(device))


class TeacherCache:
    """The shards of some folders, opened for reading."""

    def __init__(self, folders: Sequence[Path], expected: Fingerprint):
        """Read what is there; shards are mapped when a column of theirs is asked for.

        Raises:
            CacheError: there is no cache, or a part is missing.
        """
        self.expected, self.parts = expected, [ShardFolder(folder) for folder in folders]
        self.folder = folders[0] if len(folders) == 1 else folders[0].parent  # named in what is said of all
        self._mapped: dict[frozenset[Path], ShardIndex] = {}
        if lacking := [part.folder for part in self.parts if not part.has_manifest]:
            raise CacheError(f"{lacking[0]}: no teacher cache; run `dvc repro` to make it")

    @property
    def digest(self) -> str:
        """Twelve hex digits that change with anything in the cache."""
        return sha256(*(part.folder / MANIFEST for part in self.parts))[:12]

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    def column(self, column: str) -> CachedColumn:
        """All of one column.

        Raises:
            CacheError: no shard has it, one is damaged, or was made by another teacher or in another way. Another
                precision is accepted, so that a cache can travel between machines: `verify` says whether it will do.
        """
        shards = [
            (part, name) for part in self.parts for name, entry in part.entries.items() if column in entry.columns
        ]
        if not shards:
            known = sorted({c for part in self.parts for entry in part.entries.values() for c in entry.columns})
            raise CacheError(f"{self.folder}: no column `{column}`, only {', '.join(known)}; run `dvc repro`")
        held = self._held(shards)
        scale = f"{column}{SCALE}"
        return CachedColumn(
            held=held,
            width=int(held.batches[0].schema.field(column).metadata[WIDTH]),
            values=RaggedColumn.of(held.batches, column),
            scales=RaggedColumn.of(held.batches, scale) if scale in held.batches[0].schema.names else None,
        )

    def _held(self, shards: list[tuple[ShardFolder, str]]) -> ShardIndex:
        """The rows of some shards, mapped once for all the columns they hold."""
        files = frozenset(part.folder / name for part, name in shards)
        if files not in self._mapped:
            self._mapped[files] = ShardIndex.of(
                [open_shard(*shard, self.expected, but="precision") for shard in shards]
            )
        return self._mapped[files]

    def width(self, column: str) -> int:
        """Classes, hidden size or heads: the width of a column."""
        return self.column(column).width

    def on(self, rows: TokenizedDataset, columns: Sequence[str]) -> CachedTargets:
        """The teacher's words on `rows`, joined by row number and text hash.

        Raises:
            CacheError: the cache lacks a column or a row, or holds states of other tokens than the rows are cut into.
        """
        stored, tokens, at = {column: self.column(column) for column in columns}, rows.token_hashes, {}
        for held in {id(found.held): found.held for found in stored.values()}.values():  # columns of the same shards
            joined = self._join(rows, held)
            other = held.key["tokens"][joined] != tokens
            for column in (name for name, found in stored.items() if found.held is held):
                if column_layout(column).unit == "token" and other.any():
                    raise CacheError(
                        f"{self.folder}: `{column}` belongs to the teacher's tokens, but {other.sum()} of {len(rows)} rows are "
                        f"cut into others, the first with idx {rows.idx[other][0]}; with another tokenizer use logits, pooled "
                        "or words.i"
                    )
                at[column] = joined
        return CachedTargets(stored, at)

    def _join(self, rows: TokenizedDataset, held: ShardIndex) -> np.ndarray:
        at, there = held.find(rows)
        if not there.all():
            raise CacheError(
                f"{self.folder}: no words on {(~there).sum()} of {len(rows)} rows, the first with idx {rows.idx[~there][0]}; "
                "the rows have changed since the cache was made: run `dvc repro`"
            )
        return at

    def verify(
        self,
        rows: TokenizedDataset,
        columns: Sequence[str],
        teacher: nn.Module,
        config: CacheConfig,
        device: torch.device,
    ) -> dict[str, float]:
        """Ask the teacher again about `rows`, a sample; by column the largest difference of any value.

        Raises:
            CacheError: the root mean square of the differences is over `config.tolerance` of that of the values.
        """
        sample = np.arange(len(rows))
        with torch.inference_mode(), autocast(device):
            batch = rows.batch(sample).to(device)
            live = ActivationRecorder(teacher.to(device).eval(), columns)(batch)[1]
        cached, largest = self.on(rows, columns).take(sample), {}
        for column in columns:
            real = row_shapes(column, unit_counts(column, batch).tolist(), self.width(column))
            theirs, ours = (
                np.concatenate([row.ravel() for row in remove_padding(said[column].float().cpu().numpy(), real)])
                for said in (live, cached)
            )
            largest[column] = float(np.abs(theirs - ours).max())
            relative = float(np.linalg.norm(theirs - ours) / np.linalg.norm(theirs))
            if not relative <= config.tolerance:
                raise CacheError(
                    f"{self.folder}: `{column}` of the live teacher differs from the cache by {relative:.3g} (root mean square, "
                    f"relative; the largest by {largest[column]:.3g}) on {len(sample)} rows, over cache.tolerance = "
                    f"{config.tolerance}; delete the folder and run `dvc repro`"
                )
        return largest


def evenly_spaced(rows: int, count: int) -> np.ndarray:
    """`count` of `rows` row numbers, evenly spread."""
    return np.linspace(0, rows - 1, min(count, rows)).astype(int)


def open_shard(shards: ShardFolder, name: str, expected: Fingerprint, but: str = "") -> pa.RecordBatchFileReader:
    """Map a shard that was made as `expected`; a difference in `but` is accepted.

    Raises:
        CacheError: it is damaged, or was made in another way.
    """
    try:
        reader = shards.open(name)
    except ShardError as error:
        raise CacheError(f"{error}; run `dvc repro`") from error
    said = json.loads((reader.schema.metadata or {}).get(FINGERPRINT, b"{}"))
    for what, value in asdict(expected).items():
        if what != but and said.get(what) != value:
            raise CacheError(
                f"{shards.folder / name}: made with another {what}: expected {value}, got {said.get(what)}; run `dvc repro`"
            )
    return reader
