"""Filling the cache: the teacher is asked for what is missing, once, and its words stream to disk."""

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

from filbert.cache.read import FINGERPRINT, WIDTH, CacheConfig, CacheError, Fingerprint, evenly_spaced, open_shard
from filbert.cache.shards import ShardFolder
from filbert.cache.targets import KEYS, SCALE, quantize_int8, row_keys
from filbert.data.batches import Batch, TokenizedDataset
from filbert.models.activations import (
    FLOAT32_COLUMNS,
    ActivationRecorder,
    column_widths,
    remove_padding,
    row_shapes,
    unit_counts,
)
from filbert.runtime import progress
from filbert.runtime.device import autocast

ENCODED = 16384  # rows held as tokens at a time
SAMPLE = 512  # rows, or a twentieth of all, whose lengths tell the size of the whole


def build_cache(
    folder: Path,
    teacher: nn.Module,
    table: pa.Table,
    encode: Callable[[pa.Table], TokenizedDataset],
    columns: Sequence[str],
    key: Fingerprint,
    config: CacheConfig,
    device: torch.device,
) -> int:
    """Ask the teacher for every column of every row of `table` that the cache does not hold; the number of rows asked.

    Rows are encoded some at a time and written as they are asked, so that memory does not grow with their number but for
    their keys; a killed run goes on at the shard where it stopped. Shards damaged or of another fingerprint go.

    Raises:
        CacheError: the cache would grow over `config.budget_gb`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asking = _TeacherRunner(teacher.to(device).eval(), key, config, device)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        return _build(ShardFolder(folder), asking, table, encode, columns)


def _build(
    shards: ShardFolder,
    asking: "_TeacherRunner",
    table: pa.Table,
    encode: Callable[[pa.Table], TokenizedDataset],
    columns: Sequence[str],
) -> int:
    config = asking.config
    lacking, spoilt = _lacking(shards, table, columns, asking.key)
    samples = (rows[evenly_spaced(len(rows), min(SAMPLE, max(32, len(rows) // 20)))] for _, rows in lacking)
    sizes = [
        asking.bytes_per_row(encode(table.take(sample)), wanted)
        for sample, (wanted, _) in zip(samples, lacking, strict=True)
    ]
    kept = sum(entry.bytes for name, entry in shards.entries.items() if name not in spoilt)
    _check_budget(
        shards.folder, kept, [(len(rows), size) for size, (_, rows) in zip(sizes, lacking, strict=True)], config
    )
    for name in spoilt:
        shards.drop(name)
    shards.remove_unlisted()
    with progress.bar("teacher", sum(len(rows) for _, rows in lacking)) as bar:
        for size, (wanted, rows) in zip(sizes, lacking, strict=True):
            step = max(config.batch_size, int(config.shard_mb * 1e6 / sum(size.values())))
            for start in range(0, len(rows), step):
                shard = rows[start : start + step]
                parts = (encode(table.take(shard[at : at + ENCODED])) for at in range(0, len(shard), ENCODED))
                batches = chain.from_iterable(asking.batches(part, wanted, bar) for part in parts)
                first = next(batches)
                shards.append(wanted, first.schema, chain([first], batches))
    shards.write()
    return len(np.unique(np.concatenate([rows for _, rows in lacking]))) if lacking else 0


def _lacking(
    shards: ShardFolder, table: pa.Table, columns: Sequence[str], key: Fingerprint
) -> tuple[list[tuple[tuple[str, ...], np.ndarray]], list[str]]:
    """Which columns are missing of which rows, as groups of rows that lack the same; and the shards that cannot be used."""
    keys = row_keys(table["idx"].to_numpy(), table["hash"].to_numpy())
    held, spoilt = {column: [np.empty(0, np.int64)] for column in columns}, []
    for name in list(shards.entries):
        try:
            reader = open_shard(shards, name, key, but="precision")
        except CacheError as error:
            progress.log(f"computed again: {error}")
            spoilt.append(name)
            continue
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        found = np.concatenate([row_keys(b["idx"].to_numpy(), b["hash"].to_numpy()) for b in batches])
        for column in set(columns) & set(shards.entries[name].columns):
            held[column].append(found)
    code = np.zeros(len(keys), np.int64)  # bit i: column i is missing
    for bit, column in enumerate(columns):
        code |= (~np.isin(keys, np.concatenate(held[column]))).astype(np.int64) << bit
    groups = [
        (tuple(c for bit, c in enumerate(columns) if pattern >> bit & 1), np.flatnonzero(code == pattern))
        for pattern in np.unique(code[code > 0]).tolist()
    ]
    return groups, spoilt


def _check_budget(folder: Path, kept: int, wanted: list[tuple[int, dict[str, float]]], config: CacheConfig) -> None:
    parts: dict[str, float] = {}
    for rows, sizes in wanted:
        for column, size in sizes.items():
            parts[column] = parts.get(column, 0) + rows * size / 1e9
    total = kept / 1e9 + sum(parts.values())
    if parts and total > config.budget_gb:
        largest = ", ".join(f"{c} {gb:.3g}" for c, gb in sorted(parts.items(), key=lambda item: -item[1])[:4])
        raise CacheError(
            f"{folder}: the cache would take {total:.3g} GB (there are {kept / 1e9:.3g}; to come {largest}), over cache.budget_gb "
            f"= {config.budget_gb}; lower encode.max_length, set cache.states to int8, take methods that need these columns "
            "out of `methods`, delete the folder if it holds what is needed no more, or raise the budget"
        )
    if parts:
        progress.log(f"{folder}: {total:.3g} GB of {config.budget_gb:g}")


class _TeacherRunner:
    """One teacher asked for columns: rows in, record batches out."""

    def __init__(self, teacher: nn.Module, key: Fingerprint, config: CacheConfig, device: torch.device):
        self.teacher, self.key, self.config, self.device = teacher, key, config, device

    def batches(
        self, rows: TokenizedDataset, columns: Sequence[str], bar: tqdm | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The words on all rows, rows of like length together."""
        order, tokens = np.argsort(rows.lengths, kind="stable"), rows.token_hashes
        with ActivationRecorder(self.teacher, columns) as listen:
            for at in range(0, len(order), self.config.batch_size):
                part = order[at : at + self.config.batch_size]
                batch = rows.batch(part).to(self.device)
                with torch.inference_mode(), autocast(self.device):
                    said = listen(batch)[1]
                yield self._record(
                    said, batch, dict(zip(KEYS, (rows.idx[part], rows.hash[part], tokens[part]), strict=True))
                )
                if bar is not None:
                    bar.update(len(batch))

    def bytes_per_row(self, sample: TokenizedDataset, columns: Sequence[str]) -> dict[str, float]:
        """By column, from the lengths of a sample and the widths of what the teacher says of one row of it."""
        (one,) = self.batches(sample.part(np.arange(1)), columns)
        schema = one.schema
        whole, found = sample.batch(np.arange(len(sample))), {}
        for column in columns:
            field = schema.field(column)
            real = row_shapes(column, unit_counts(column, whole).tolist(), int(field.metadata[WIDTH]))
            values, vectors = sum(map(math.prod, real)), sum(math.prod(shape[:-1]) for shape in real)
            scales = 4 * vectors * (f"{column}{SCALE}" in schema.names)
            found[column] = (values * field.type.value_type.bit_width / 8 + scales) / len(sample)
        return found

    def _record(self, said: dict[str, Tensor], batch: Batch, key: dict[str, np.ndarray]) -> pa.RecordBatch:
        arrays, width = {name: pa.array(values) for name, values in key.items()}, column_widths(said)
        for column, dense in said.items():
            real = row_shapes(column, unit_counts(column, batch).tolist(), width[column])
            arrays |= _arrays(column, dense, real, self.config.states)
        fields = [
            pa.field(name, array.type, metadata={WIDTH: str(width[name])} if name in width else None)
            for name, array in arrays.items()
        ]
        schema = pa.schema(fields, metadata={FINGERPRINT: json.dumps(asdict(self.key))})
        return pa.record_batch(list(arrays.values()), schema=schema)


def _arrays(column: str, dense: Tensor, shapes: list[tuple[int, ...]], states: str) -> dict[str, pa.Array]:
    """A dense column as ragged Arrow lists: float, or int8 with a scale per vector."""
    small = column not in FLOAT32_COLUMNS and states == "int8"
    rows = remove_padding(
        dense.to(torch.float32 if small or column in FLOAT32_COLUMNS else torch.float16).cpu().numpy(), shapes
    )
    if not small:
        return {column: _lists(rows)}
    values, scales = zip(*map(quantize_int8, rows), strict=True)
    return {column: _lists(values), f"{column}{SCALE}": _lists(scales)}


def _lists(rows: Sequence[np.ndarray]) -> pa.Array:
    offsets = np.cumsum([0, *(row.size for row in rows)], dtype=np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate([row.ravel() for row in rows])))
