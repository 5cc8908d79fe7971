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

from filbert import progress
from filbert.cache import FINGERPRINT, WIDTH, CacheConfig, CacheError, Fingerprint, open_shard, sample_of
from filbert.columns import EXACT, Listener, layout, real, units, widths
from filbert.data import Batch, Encoded
from filbert.device import autocast
from filbert.shards import Shards
from filbert.words import KEYS, SCALE, row_keys

ENCODED = 16384  # rows held as pieces at a time
SAMPLE = 128  # rows, or a fiftieth of all, whose words are measured to tell the size of the whole


def fill(
    folder: Path,
    teacher: nn.Module,
    table: pa.Table,
    encode: Callable[[pa.Table], Encoded],
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
    asking = _Asking(teacher.to(device).eval(), key, config, device)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        return _fill(Shards(folder), asking, table, encode, columns)


def _fill(
    shards: Shards, asking: "_Asking", table: pa.Table, encode: Callable[[pa.Table], Encoded], columns: Sequence[str]
) -> int:
    config = asking.config
    lacking, spoilt = _lacking(shards, table, columns, asking.key)
    samples = (rows[sample_of(len(rows), min(SAMPLE, max(8, len(rows) // 50)))] for _, rows in lacking)
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
    shards.sweep()
    with progress.bar("teacher", sum(len(rows) for _, rows in lacking)) as bar:
        for size, (wanted, rows) in zip(sizes, lacking, strict=True):
            step = max(config.batch_size, int(config.shard_mb * 1e6 / sum(size.values())))
            for start in range(0, len(rows), step):
                shard = rows[start : start + step]
                parts = (encode(table.take(shard[at : at + ENCODED])) for at in range(0, len(shard), ENCODED))
                batches = chain.from_iterable(asking.batches(part, wanted, bar) for part in parts)
                first = next(batches)
                shards.append(wanted, first.schema, chain([first], batches))
    return len(np.unique(np.concatenate([rows for _, rows in lacking]))) if lacking else 0


def _lacking(
    shards: Shards, table: pa.Table, columns: Sequence[str], key: Fingerprint
) -> tuple[list[tuple[tuple[str, ...], np.ndarray]], list[str]]:
    """Which columns are missing of which rows, as groups of rows that lack the same; and the shards that cannot be used."""
    keys = row_keys(table["idx"].to_numpy(), table["hash"].to_numpy())
    held, spoilt = {column: [np.empty(0, np.int64)] for column in columns}, []
    for name in list(shards.entries):
        try:
            reader = open_shard(shards, name, key, but="precision")
        except CacheError as error:
            progress.say(f"computed again: {error}")
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
        progress.say(f"{folder}: {total:.3g} GB of {config.budget_gb:g}")


class _Asking:
    """One teacher asked for columns: rows in, record batches out."""

    def __init__(self, teacher: nn.Module, key: Fingerprint, config: CacheConfig, device: torch.device):
        self.teacher, self.key, self.config, self.device = teacher, key, config, device

    def batches(self, rows: Encoded, columns: Sequence[str], bar: tqdm | None = None) -> Iterator[pa.RecordBatch]:
        """The words on all rows, rows of like length together."""
        order, pieces = np.argsort(rows.lengths, kind="stable"), rows.pieces
        with Listener(self.teacher, columns) as listen:
            for at in range(0, len(order), self.config.batch_size):
                part = order[at : at + self.config.batch_size]
                batch = rows.batch(part).to(self.device)
                with torch.inference_mode(), autocast(self.device):
                    said = listen(batch)[1]
                yield self._record(
                    said, batch, dict(zip(KEYS, (rows.idx[part], rows.hash[part], pieces[part]), strict=True))
                )
                if bar is not None:
                    bar.update(len(batch))

    def bytes_per_row(self, sample: Encoded, columns: Sequence[str]) -> dict[str, float]:
        """By column, measured on a sample."""
        found = list(self.batches(sample, columns))
        names = found[0].schema.names
        total = {name: sum(batch[name].nbytes for batch in found) / len(sample) for name in names}
        return {c: total[c] + total.get(f"{c}{SCALE}", 0) for c in names if not c.endswith(SCALE)}

    def _record(self, said: dict[str, Tensor], batch: Batch, key: dict[str, np.ndarray]) -> pa.RecordBatch:
        arrays, width = {name: pa.array(values) for name, values in key.items()}, widths(said)
        for column, dense in said.items():
            arrays |= _arrays(column, dense, units(column, batch), width[column], self.config.states)
        fields = [
            pa.field(name, array.type, metadata={WIDTH: str(width[name])} if name in width else None)
            for name, array in arrays.items()
        ]
        schema = pa.schema(fields, metadata={FINGERPRINT: json.dumps(asdict(self.key))})
        return pa.record_batch(list(arrays.values()), schema=schema)


def _arrays(column: str, dense: Tensor, counts: Tensor, width: int, states: str) -> dict[str, pa.Array]:
    """A dense column as ragged Arrow lists: float, or int8 with a scale per vector."""
    shapes = [layout(column).shape(n, width) for n in counts.tolist()]
    sizes = [math.prod(shape) for shape in shapes]
    held = None if sum(sizes) == dense.numel() else real(column, dense, counts)  # most batches have no padding at all
    if column in EXACT or states == "float16":
        return {column: _lists(dense.to(torch.float32 if column in EXACT else torch.float16), held, sizes)}
    dense = dense.float() if held is None else dense.float().where(held, 0)
    scale = dense.abs().amax(-1).clamp_min(1e-30) / 127
    vectors = [math.prod(shape[:-1]) for shape in shapes]
    return {
        column: _lists((dense / scale[..., None]).round().to(torch.int8), held, sizes),
        f"{column}{SCALE}": _lists(scale, None if held is None else held.any(-1), vectors),
    }


def _lists(dense: Tensor, held: Tensor | None, sizes: list[int]) -> pa.Array:
    values = dense.flatten() if held is None else dense[held]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values.cpu().numpy()))
