"""Filling the cache: the teacher runs on the rows and for the columns that are missing, and its outputs are streamed to disk."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from torch import Tensor, nn
from tqdm.auto import tqdm

from filbert.cache.cached_targets import KEYS, SCALE, quantize_int8, row_keys
from filbert.cache.shards import ShardFolder
from filbert.cache.teacher_cache import (
    FINGERPRINT,
    WIDTH,
    CacheConfig,
    CacheError,
    Fingerprint,
    open_shard,
)
from filbert.data.arrow import evenly_spaced
from filbert.data.batches import Batch, TokenizedDataset
from filbert.models.intermediate_outputs import (
    FLOAT32_COLUMNS,
    ActivationRecorder,
    column_widths,
    remove_padding,
    row_shapes,
    unit_counts,
)
from filbert.runtime import progress
from filbert.runtime.device import autocast

CHUNK = (
    1024  # rows that are sorted by length together: batches, so the last bits, do not depend on shards or other states
)
SAMPLE = 512  # most rows (or a twentieth of all) from whose lengths the size of the cache is estimated

Missing = tuple[tuple[str, ...], np.ndarray]  # columns, and positions of the rows that lack exactly these
Tokenize = Callable[[pa.Table], TokenizedDataset]


def build_cache(
    folder: Path,
    teacher: nn.Module,
    table: pa.Table,
    tokenize: Tokenize,
    columns: Sequence[str],
    key: Fingerprint,
    config: CacheConfig,
    device: torch.device,
) -> int:
    """Compute every column of every row of `table` that the cache lacks; the number of rows that the teacher ran on.

    Rows are tokenised some at a time and their outputs written at once, so that only their keys stay in memory; a killed run
    continues after its last complete shard. Damaged shards, and those with another fingerprint, are deleted.

    Raises:
        CacheError: the cache would grow over `config.budget_gb`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runner = _TeacherRunner(teacher.to(device).eval(), key, config, device)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        return _build(ShardFolder.for_writing(folder), runner, table, tokenize, columns)


def _build(
    shards: ShardFolder, runner: "_TeacherRunner", table: pa.Table, tokenize: Tokenize, columns: Sequence[str]
) -> int:
    config = runner.config
    groups, unusable = _find_missing(shards, table, columns, runner.key)
    sample = _sample(np.arange(len(table)))  # of all rows, so that shards do not depend on what is stored already
    sizes = [runner.bytes_per_row(tokenize(table.take(sample)), names) for names, _ in groups]
    kept = sum(entry.bytes for name, entry in shards.entries.items() if name not in unusable)
    wanted = [(len(rows), size) for size, (_, rows) in zip(sizes, groups, strict=True)]
    _check_budget(shards.folder, kept, wanted, config)
    for name in unusable:
        shards.drop(name)
    shards.remove_unlisted()
    with progress.bar("teacher", sum(len(rows) for _, rows in groups)) as bar:
        for size, (names, rows) in zip(sizes, groups, strict=True):
            step = max(1, int(config.shard_mb * 1e6 / sum(size.values())) // CHUNK) * CHUNK
            for start in range(0, len(rows), step):
                shard = rows[start : start + step]
                parts = (table.take(shard[at : at + CHUNK]) for at in range(0, len(shard), CHUNK))
                batches = chain.from_iterable(runner.batches(tokenize(part), names, bar) for part in parts)
                first = next(batches)
                shards.append(names, first.schema, chain([first], batches))
    shards.write()
    return len(np.unique(np.concatenate([rows for _, rows in groups]))) if groups else 0


def _sample(rows: np.ndarray) -> np.ndarray:
    """The rows from which the size of all is estimated."""
    return rows[evenly_spaced(len(rows), min(SAMPLE, max(32, len(rows) // 20)))]


def _find_missing(
    shards: ShardFolder, table: pa.Table, columns: Sequence[str], key: Fingerprint
) -> tuple[list[Missing], list[str]]:
    """Which columns are missing of which rows, as groups of rows that lack the same; and the shards that cannot be used."""
    keys = row_keys(table["idx"].to_numpy(), table["hash"].to_numpy())
    stored, unusable = _stored_keys(shards, columns, key)
    code = np.zeros(len(keys), np.int64)  # bit i: column i is missing
    for bit, column in enumerate(columns):
        code |= (~np.isin(keys, np.concatenate(stored[column]))).astype(np.int64) << bit
    groups = [
        (tuple(c for bit, c in enumerate(columns) if pattern >> bit & 1), np.flatnonzero(code == pattern))
        for pattern in np.unique(code[code > 0]).tolist()
    ]
    return groups, unusable


def _stored_keys(
    shards: ShardFolder, columns: Sequence[str], key: Fingerprint
) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """By column the keys of the rows that have it, shard by shard; and the shards that cannot be used."""
    stored: dict[str, list[np.ndarray]] = {column: [np.empty(0, np.int64)] for column in columns}
    unusable = []
    for name in list(shards.entries):
        try:
            reader = open_shard(shards, name, key, except_for="precision")
        except CacheError as error:
            progress.log(f"computed again: {error}")
            unusable.append(name)
            continue
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        found = np.concatenate([row_keys(b["idx"].to_numpy(), b["hash"].to_numpy()) for b in batches])
        for column in set(columns) & set(shards.entries[name].columns):
            stored[column].append(found)
    return stored, unusable


def _check_budget(folder: Path, kept: int, wanted: list[tuple[int, dict[str, float]]], config: CacheConfig) -> None:
    """Refuse, before the teacher runs, a cache over the budget: `kept` bytes, and these rows with their bytes by column."""
    parts: dict[str, float] = {}
    for rows, sizes in wanted:
        for column, size in sizes.items():
            parts[column] = parts.get(column, 0) + rows * size / 1e9
    total = kept / 1e9 + sum(parts.values())
    if parts and total > config.budget_gb:
        largest = ", ".join(f"{c} {gb:.3g}" for c, gb in sorted(parts.items(), key=lambda item: -item[1])[:4])
        raise CacheError(
            f"{folder}: the cache would take {total:.3g} GB ({kept / 1e9:.3g} exist; new are {largest}), over cache.budget_gb "
            f"= {config.budget_gb}; lower tokenizer.max_length, set cache.states to int8, remove columns from cache_columns, "
            "delete the folder if much of it is not needed any more, or raise the budget"
        )
    if parts:
        progress.log(f"{folder}: {total:.3g} GB of {config.budget_gb:g}")


class _TeacherRunner:
    """A teacher that computes columns: rows in, record batches out."""

    def __init__(self, teacher: nn.Module, key: Fingerprint, config: CacheConfig, device: torch.device):
        self.teacher, self.key, self.config, self.device = teacher, key, config, device

    def batches(
        self, rows: TokenizedDataset, columns: Sequence[str], bar: tqdm | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The outputs for all rows; batches hold rows of similar length."""
        order, tokens = np.argsort(rows.lengths, kind="stable"), rows.token_hashes
        with ActivationRecorder(self.teacher, columns) as record:
            for at in range(0, len(order), self.config.batch_size):
                part = order[at : at + self.config.batch_size]
                batch = rows.batch(part).to(self.device)
                with torch.inference_mode(), autocast(self.device):
                    outputs = record(batch)[1]
                keys = dict(zip(KEYS, (rows.idx[part], rows.hash[part], tokens[part]), strict=True))
                yield self._record_batch(outputs, batch, keys)
                if bar is not None:
                    bar.update(len(batch))

    def bytes_per_row(self, sample: TokenizedDataset, columns: Sequence[str]) -> dict[str, float]:
        """Bytes by column, from the lengths of a sample and the widths of the outputs for one row of it."""
        (one,) = self.batches(sample.select(np.arange(1)), columns)
        schema = one.schema
        batch, sizes = sample.batch(np.arange(len(sample))), {}
        for column in columns:
            field = schema.field(column)
            shapes = row_shapes(column, unit_counts(column, batch).tolist(), int(field.metadata[WIDTH]))
            values, vectors = sum(map(math.prod, shapes)), sum(math.prod(shape[:-1]) for shape in shapes)
            scales = 4 * vectors * (f"{column}{SCALE}" in schema.names)
            sizes[column] = (values * field.type.value_type.bit_width / 8 + scales) / len(sample)
        return sizes

    def _record_batch(self, outputs: dict[str, Tensor], batch: Batch, keys: dict[str, np.ndarray]) -> pa.RecordBatch:
        arrays, width = {name: pa.array(values) for name, values in keys.items()}, column_widths(outputs)
        for column, dense in outputs.items():
            shapes = row_shapes(column, unit_counts(column, batch).tolist(), width[column])
            arrays |= _arrays(column, dense, shapes, self.config.states)
        fields = [
            pa.field(name, array.type, metadata={WIDTH: str(width[name])} if name in width else None)
            for name, array in arrays.items()
        ]
        schema = pa.schema(fields, metadata={FINGERPRINT: json.dumps(asdict(self.key))})
        return pa.record_batch(list(arrays.values()), schema=schema)


def _arrays(column: str, dense: Tensor, shapes: list[tuple[int, ...]], states: str) -> dict[str, pa.Array]:
    """A dense column as ragged Arrow lists: float, or int8 with a scale per vector."""
    int8 = column not in FLOAT32_COLUMNS and states == "int8"
    dtype = torch.float32 if int8 or column in FLOAT32_COLUMNS else torch.float16
    rows = remove_padding(dense.to(dtype).cpu().numpy(), shapes)
    if not int8:
        return {column: _ragged_lists(rows)}
    values, scales = zip(*map(quantize_int8, rows), strict=True)
    return {column: _ragged_lists(values), f"{column}{SCALE}": _ragged_lists(scales)}


def _ragged_lists(rows: Sequence[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *(row.size for row in rows)], dtype=np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([row.ravel() for row in rows])))
