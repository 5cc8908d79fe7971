"""Raw tables become rows that can be trusted: read strictly, validated, deduplicated, split, checked for leaks; as Arrow.

Where GLUE hides its test labels, its dev files are our test rows and a slice of train is our validation: choices are
made on validation alone. Slices are drawn by a hash of the text, so that they do not depend on the order of the rows.
"""

import csv
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from filbert import FilbertError
from filbert.files import whole_file
from filbert.sources import TABLE_SUFFIXES
from filbert.tasks import Kind, Task

Row = dict[str, Any]  # idx, the text columns of the task, label (None where there is none), hash


class RowError(FilbertError):
    """A row is not what its task declares; says which file, which row, what was expected and what came."""


@dataclass(frozen=True)
class PrepareConfig:
    """Fractions of the training rows that become validation rows, and test rows where the task has no test file."""

    validation: float
    test: float
    most: int  # no slice is larger than this many rows
    seed: int


@dataclass(frozen=True)
class Prepared:
    """The tables of a task by split name, and how many rows were dropped for which reason."""

    tables: dict[str, pa.Table]
    counts: dict[str, int]


def prepare(folder: Path, task: Task, config: PrepareConfig) -> Prepared:
    """Read the raw tables of `task` in `folder`.

    The tables are `train`, `validation`, `test` (and `test_…` where the task has several test files), and
    `unlabelled` where the task allows rows without a label. A row equal to a test row after normalisation leaves the
    training rows; test rows that come in a file of their own are never changed.

    Raises:
        RowError: a file is missing, is not UTF-8, or a row is malformed.
    """
    counts: Counter[str] = Counter()
    tests = {name: list(read(folder, stem, task)) for name, stem in zip(test_names(task), task.test, strict=False)}
    rows = list(_distinct(read(folder, task.train, task, counts), task, counts))
    unlabelled = [row for row in rows if row["label"] is None]
    rows = [row for row in rows if row["label"] is not None]
    if not tests:
        rows, tests["test"] = _slice(rows, task, config.test, config)
    rows = list(_without(rows, tests, task, counts))
    train, validation = _slice(rows, task, config.validation, config)
    splits = {"train": train, "validation": validation, **tests}
    if task.unlabelled:
        splits["unlabelled"] = list(_without(unlabelled, {"validation": validation, **tests}, task, counts))
    for name, split in splits.items():
        if not split:
            raise RowError(f"{folder}: no row is left for {name} of task {task.name}; its files hold too few rows")
        counts[name] = len(split)
    return Prepared({name: _table(split, task) for name, split in splits.items()}, dict(counts))


def test_names(task: Task) -> list[str]:
    """`test`, then `test_mismatched` and the like where a task has more than one test file."""
    return ["test", *(f"test_{stem.rsplit('_', 1)[-1]}" for stem in task.test[1:])]


def read(folder: Path, stem: str, task: Task, counts: Counter[str] | None = None) -> Iterator[Row]:
    """The valid rows of the table `stem` in `folder`, in the file's order; `idx` counts the file's data rows from 0."""
    file = next((folder / f"{stem}{s}" for s in TABLE_SUFFIXES if (folder / f"{stem}{s}").is_file()), None)
    if file is None:
        raise RowError(f"{folder}: no table {stem} ({', '.join(TABLE_SUFFIXES)}) for task {task.name}; fetch it again")
    records = _read_tsv(file, task) if file.suffix == ".tsv" else _read_table(file)
    counts = Counter() if counts is None else counts
    for idx, (where, record) in enumerate(records):
        try:
            if isinstance(record, RowError):
                raise record
            if task.where is None or record.get(task.where[0]) == task.where[1]:
                yield _valid(idx, record, task, where)
        except RowError:
            counts["flawed"] += 1
            if counts["flawed"] > task.flaws:
                raise


def _read_tsv(file: Path, task: Task) -> Iterator[tuple[str, Row | RowError]]:
    """GLUE's own format: tab-separated, a quote is a plain character. A line of other width is yielded as its error."""
    csv.field_size_limit(2**31 - 1)
    number = 0
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader((line.replace("\0", "") for line in stream), delimiter="\t", quoting=csv.QUOTE_NONE)
            header = task.header or tuple(next(lines, ()))
            for number, fields in enumerate(lines, 1 if task.header else 2):
                where = f"{file}, line {number}"
                if len(fields) != len(header):
                    wanted = f"{len(header)} columns ({', '.join(header)})"
                    yield where, RowError(f"{where}: expected {wanted}, got {len(fields)}")
                    continue
                yield where, dict(zip(header, fields, strict=True))
    except UnicodeDecodeError as error:
        raise RowError(f"{file}, after line {number}: expected UTF-8, got {error}; convert the file") from error


def _read_table(file: Path) -> Iterator[tuple[str, Row | RowError]]:
    """CSV, JSON lines or parquet, read by `datasets`."""
    import tempfile

    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="filbert-") as cache:
        try:
            if file.suffix == ".csv":
                rows = Dataset.from_csv(str(file), cache_dir=cache, keep_in_memory=True, keep_default_na=False)
            elif file.suffix == ".jsonl":
                rows = Dataset.from_json(str(file), cache_dir=cache, keep_in_memory=True)
            else:
                rows = Dataset.from_parquet(str(file), cache_dir=cache, keep_in_memory=True)
        except Exception as error:
            cause = error.__cause__ or error
            raise RowError(f"{file}: expected a {file.suffix[1:]} table in UTF-8, got {cause}") from error
        for number, record in enumerate(rows, 1):
            yield f"{file}, row {number}", dict(record)


def _valid(idx: int, record: Row, task: Task, where: str) -> Row:
    record = {task.rename.get(name, name): value for name, value in record.items()}
    missing = [name for name in task.columns if name not in record]
    if missing:
        raise RowError(f"{where}: no column {', '.join(missing)} for task {task.name}; found {', '.join(record)}")
    for name in task.columns:
        if not isinstance(record[name], str) or not record[name].strip():
            raise RowError(f"{where}: expected text in column {name}, got {record[name]!r}")
    texts = {name: record[name] for name in task.columns}
    return {"idx": idx, **texts, "label": _label(record.get("label"), task, where), "hash": text_hash(*texts.values())}


def _label(value: Any, task: Task, where: str) -> float | int | None:
    text = "" if value is None else str(value).strip()
    if not text and task.unlabelled:
        return None
    if task.kind is Kind.REGRESSION:
        low, high = task.span
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise RowError(f"{where}: expected a label between {low} and {high}, got {value!r}")
        return number
    if text in task.labels:
        return task.labels.index(text)
    number_text = text.removesuffix(".0")
    if number_text.isdecimal() and int(number_text) < len(task.labels):
        return int(number_text)
    allowed = f"{', '.join(task.labels)} or 0 to {len(task.labels) - 1}"
    raise RowError(f"{where}: expected a label out of {allowed}, got {value!r}")


def normalised(text: str) -> str:
    """What two rows are compared by: compatibility forms, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def text_hash(*texts: str) -> int:
    """A signed 64-bit hash of the exact text, by which the teacher's words are joined to a row."""
    digest = hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def key(row: Row, task: Task) -> str:
    """What makes two rows the same: their normalised texts, in either order where the task is symmetric."""
    texts = [normalised(row[name]) for name in task.columns]
    return "\x1f".join(sorted(texts) if task.symmetric else texts)


def _distinct(rows: Iterator[Row], task: Task, counts: Counter[str]) -> Iterator[Row]:
    """The first of each group of equal rows; none of a group whose labels disagree."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row, task), []).append(row)
    for group in groups.values():
        if len({row["label"] for row in group} - {None}) > 1:
            counts["conflicting"] += len(group)
            continue
        counts["duplicate"] += len(group) - 1
        yield next((row for row in group if row["label"] is not None), group[0])


def _without(rows: list[Row], held_out: dict[str, list[Row]], task: Task, counts: Counter[str]) -> Iterator[Row]:
    seen = {key(row, task) for split in held_out.values() for row in split}
    for row in rows:
        if key(row, task) in seen:
            counts["leaking"] += 1
        else:
            yield row


def _slice(rows: list[Row], task: Task, fraction: float, config: PrepareConfig) -> tuple[list[Row], list[Row]]:
    """The rows without, and the rows of, a slice of about `fraction`; rows that share `together` stay together."""
    wanted = min(round(fraction * len(rows)), config.most)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(normalised(row[task.together]) if task.together else key(row, task), []).append(row)
    taken: set[int] = set()
    for name in sorted(groups, key=lambda name: hashlib.sha256(f"{config.seed}\x1f{name}".encode()).digest()):
        if len(taken) >= wanted:
            break
        taken.update(row["idx"] for row in groups[name])
    return [row for row in rows if row["idx"] not in taken], [row for row in rows if row["idx"] in taken]


def _table(rows: list[Row], task: Task) -> pa.Table:
    label = pa.float32() if task.kind is Kind.REGRESSION else pa.int32()
    texts = [(name, pa.string()) for name in task.columns]
    schema = pa.schema([("idx", pa.int32()), *texts, ("label", label), ("hash", pa.int64())])
    return pa.Table.from_pylist(rows, schema=schema)


def digest(table: pa.Table) -> str:
    """Twelve hex digits that change with any text, label or order of the rows."""
    columns = (table[name].combine_chunks().to_numpy(zero_copy_only=False) for name in ("hash", "label"))
    return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()[:12]


def write_table(table: pa.Table, file: Path) -> None:
    """Write `table` as an Arrow IPC file, whole or not at all."""
    with whole_file(file) as making, pa.OSFile(str(making), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)


def read_table(file: Path) -> pa.Table:
    """The Arrow IPC `file`, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
