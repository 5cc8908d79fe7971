"""The teacher's words as Arrow files: computed once, appended to, verified, joined to rows; a mismatch is refused.

A cache is a folder of Arrow IPC shards. Each shard's schema carries the fingerprint of what was asked whom; each row
carries the row's `idx` and the hash of its text. What the teacher says of a row is one column per entry of COLUMNS.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from filbert import FilbertError, progress, students
from filbert.data import Batch, EncodeConfig, Encoded
from filbert.device import autocast, precision
from filbert.files import sha256, weights_hash
from filbert.rows import read_table, write_table

FINGERPRINT = b"filbert.fingerprint"


class CacheError(FilbertError):
    """The cache does not hold this teacher's words on these rows."""


@dataclass(frozen=True)
class CacheConfig:
    """How the teacher is asked."""

    batch_size: int
    shard_rows: int
    verify_rows: int  # rows asked again, live, whenever the cache is opened for training
    tolerance: float  # largest difference of a logit that verification accepts


@dataclass(frozen=True)
class Column:
    """One thing a teacher says of a row: how it is read off the model's answer, written to Arrow and read back."""

    read: Callable[[Any, Batch], Tensor]  # the answer to a batch, and the batch -> [B, width]
    write: Callable[[np.ndarray], pa.Array]  # [N, width] -> N values
    map: Callable[[pa.ChunkedArray], np.ndarray]  # N values -> [N, width]


def _fixed(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([chunk.values.to_numpy().reshape(-1, column.type.list_size) for chunk in column.chunks])


COLUMNS = {"logits": Column(read=lambda answer, batch: answer.logits.float(), write=_fixed, map=_matrix)}


@dataclass(frozen=True)
class Fingerprint:
    """What was asked whom: equal fingerprints mean equal words on equal rows."""

    teacher: str  # SHA-256 over the weights
    tokenizer: str  # SHA-256 of tokenizer.json
    max_length: int
    precision: str  # of the teacher's arithmetic


def fingerprint(teacher: Path, encode: EncodeConfig, device: torch.device) -> Fingerprint:
    """The fingerprint of the teacher saved in a folder."""
    tokenizer = sha256(teacher / "tokenizer.json")
    return Fingerprint(weights_hash(teacher), tokenizer, encode.max_length, precision(device))


@dataclass(frozen=True)
class Words:
    """The cached columns aligned to the rows of one split."""

    columns: Mapping[str, np.ndarray]  # each [rows of the cache, width]
    at: np.ndarray  # [N] position in the cache of each row of the split

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        return {name: torch.from_numpy(column[self.at[rows]]) for name, column in self.columns.items()}


class Cache:
    """The shards of one folder, opened for reading."""

    def __init__(self, folder: Path, expected: Fingerprint):
        """Map the shards of `folder`.

        Raises:
            CacheError: there are none, one is damaged, or they were made by another teacher or in another way. Another
                precision is accepted, so that a cache can travel between machines: `verify` says whether it will do.
        """
        self.folder = folder
        files = _shards(folder)
        if not files:
            raise CacheError(f"{folder}: no teacher cache; run `dvc repro` to make it")
        table = pa.concat_tables([_read(file, expected, but="precision") for file in files])
        self.idx, self.hash = table["idx"].to_numpy(), table["hash"].to_numpy()
        self.columns = {name: column.map(table[name]) for name, column in COLUMNS.items()}

    def on(self, rows: Encoded) -> Words:
        """The teacher's words on `rows`, joined by row number and text hash.

        Raises:
            CacheError: the cache lacks a row.
        """
        ours, theirs = _keys(rows.idx, rows.hash), _keys(self.idx, self.hash)
        order = np.argsort(theirs, kind="stable")
        at = order[np.minimum(np.searchsorted(theirs, ours, sorter=order), len(order) - 1)]
        absent = np.flatnonzero((self.hash[at] != rows.hash) | (self.idx[at] != rows.idx))
        if len(absent):
            raise CacheError(
                f"{self.folder}: no words on {len(absent)} of {len(rows)} rows, the first with idx {rows.idx[absent[0]]}; "
                "the rows have changed since the cache was made: run `dvc repro`"
            )
        return Words(self.columns, at)

    def verify(self, rows: Encoded, teacher: nn.Module, config: CacheConfig, device: torch.device) -> float:
        """Ask the teacher again about a sample of `rows`; the largest difference of a logit.

        Raises:
            CacheError: the difference is over `config.tolerance`.
        """
        sample = np.linspace(0, len(rows) - 1, min(config.verify_rows, len(rows))).astype(int)
        with torch.inference_mode(), autocast(device):
            batch = rows.batch(sample).to(device)
            live = students.ask(teacher.to(device).eval(), batch)
        cached = self.on(rows).take(sample)["logits"].to(device)
        difference = float((COLUMNS["logits"].read(live, batch) - cached).abs().max())
        if difference > config.tolerance:
            raise CacheError(
                f"{self.folder}: the live teacher differs from the cache by {difference:.3g} on {len(sample)} rows, over "
                f"cache.tolerance = {config.tolerance}; delete the folder and run `dvc repro`"
            )
        return difference


def build(
    folder: Path, teacher: nn.Module, rows: Encoded, key: Fingerprint, config: CacheConfig, device: torch.device
) -> int:
    """Ask the teacher about every row the cache does not hold yet; the number of rows asked.

    Shards are written whole, so that a killed build goes on where it stopped. Shards of another fingerprint go.
    """
    for remains in folder.glob(".*-shard-*.arrow"):  # of a killed build
        remains.unlink()
    held: set[tuple[int, int]] = set()
    for file in _shards(folder):
        try:
            table = _read(file, key)
        except CacheError as error:
            progress.say(f"{error}; it is computed again")
            file.unlink()
            continue
        held.update(zip(table["idx"].to_pylist(), table["hash"].to_pylist(), strict=True))
    wanted = zip(rows.idx.tolist(), rows.hash.tolist(), strict=True)
    missing = np.array([i for i, pair in enumerate(wanted) if pair not in held], dtype=np.int64)
    missing = missing[np.argsort(rows.lengths[missing], kind="stable")]
    number = max((int(file.stem.split("-")[1]) for file in _shards(folder)), default=-1) + 1
    teacher.to(device).eval()
    with progress.bar("teacher", len(missing)) as bar:
        for start in range(0, len(missing), config.shard_rows):
            part = missing[start : start + config.shard_rows]
            columns = _asked(teacher, rows, part, config, device, bar)
            table = pa.table({"idx": rows.idx[part], "hash": rows.hash[part], **columns})
            table = table.replace_schema_metadata({FINGERPRINT: json.dumps(asdict(key))})
            write_table(table, folder / f"shard-{number:05d}.arrow")
            number += 1
    return len(missing)


def _asked(
    teacher: nn.Module, rows: Encoded, part: np.ndarray, config: CacheConfig, device: torch.device, bar: tqdm
) -> dict[str, pa.Array]:
    said: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    with torch.inference_mode(), autocast(device):
        for at in range(0, len(part), config.batch_size):
            batch = rows.batch(part[at : at + config.batch_size]).to(device)
            answer = students.ask(teacher, batch)
            for name, column in COLUMNS.items():
                said[name].append(column.read(answer, batch).cpu().numpy())
            bar.update(len(batch))
    return {name: COLUMNS[name].write(np.concatenate(values)) for name, values in said.items()}


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.arrow"))


def _keys(idx: np.ndarray, text_hash: np.ndarray) -> np.ndarray:
    """One int64 per row; that it stands for (idx, hash) is checked after the search."""
    return text_hash ^ (idx.astype(np.int64) * np.int64(0x1E3779B97F4A7C15))


def _read(file: Path, expected: Fingerprint, but: str = "") -> pa.Table:
    try:
        table = read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise CacheError(f"{file}: damaged shard ({error})") from error
    said = json.loads((table.schema.metadata or {}).get(FINGERPRINT, b"{}"))
    for name, value in asdict(expected).items():
        if name != but and said.get(name) != value:
            raise CacheError(
                f"{file}: made with another {name}: expected {value}, got {said.get(name)}; run `dvc repro`, or delete "
                "the folder if that does not make it anew"
            )
    return table
