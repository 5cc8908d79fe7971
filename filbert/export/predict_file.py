"""A file of texts in, a file of answers out, in the file's order and in flat memory; after a kill it goes on where it was.

What is finished is appended to a hidden file beside the output, with a record of how far it got; both vanish when all is done. A
row that cannot be answered is reported by file and line, left out, and the rest goes on.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from filbert import FilbertError
from filbert.data.formats import Record, RowError, read_records
from filbert.data.tasks import Task, TaskKind
from filbert.export import folder as folders
from filbert.export.inference import Predictor, Text
from filbert.runtime import files, progress

INPUTS = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
OUTPUTS = (".jsonl", ".csv", ".parquet")
WINDOW = 4096  # rows in memory; within them texts of like length are answered together
PREFIX, SHARE = "predicted_", "probability."  # of names of columns
Report = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How texts are answered."""

    every: bool = False  # all probabilities
    abstain: float | None = None  # wanted precision
    tokens: int = 4096  # budget of a batch
    workers: int = 1


@dataclass
class Counts:
    """How far a run got."""

    read: int = 0  # rows of the input, the bad ones too
    answered: int = 0
    bad: int = 0
    cut: int = 0  # texts longer than the maximum length
    bytes: int = 0  # of the unfinished output
    key: dict[str, Any] = field(default_factory=dict)  # of what this belongs to


def answer_rows(
    model: Predictor, rows: Iterable[tuple[str, Text | RowError]], options: Options, counts: Counts, report: Report
) -> list[tuple[int, dict[str, Any]]]:
    """The answers to some rows by their number among them; a row that cannot be answered is reported by its place."""
    good: list[tuple[int, Text]] = []
    for number, (where, text) in enumerate(rows):
        counts.read += 1
        problem = str(text) if isinstance(text, RowError) else model.problem(text)
        if not problem:
            good.append((number, text))  # type: ignore[arg-type]
        else:
            counts.bad += 1
            report(problem if isinstance(text, RowError) else f"{where}: {problem}")
    texts = [text for _, text in good]
    counts.answered += len(texts)
    answers = model.predict(texts, options.every, options.abstain, options.tokens, options.workers)
    counts.cut += model.cut
    return [(number, answer) for (number, _), answer in zip(good, answers, strict=True)]


def predict_file(
    model: Predictor, folder: Path, file: Path, out: Path, columns: tuple[str, ...], options: Options, report: Report
) -> Counts:
    """Answer the rows of `file`, a text in each of `columns`, into `out`, with the columns that they have.

    Raises:
        FilbertError: the file cannot be read or written, has no rows or not these columns; another process writes `out`.
    """
    _check_names(file, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.with_name(f".{out.name}.lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                return _answer_file(model, folder, file, out, columns, options, report)
            finally:
                with suppress(OSError):
                    lock.unlink()
    except Timeout as error:
        raise FilbertError(f"{out}: another process is writing it; wait for its end, or name another output") from error


def _answer_file(
    model: Predictor, folder: Path, file: Path, out: Path, columns: tuple[str, ...], options: Options, report: Report
) -> Counts:
    part, state = (out.with_name(f".{out.name}.{end}") for end in ("part", "json"))
    counts = _resume(part, state, _key(model, folder, file, columns, options))
    rows = _rows(file, columns)
    first = next(rows, None)
    if first is None:
        raise FilbertError(f"{file}: expected rows, found none")
    rows = islice(chain([first], rows), counts.read, None)
    with (
        part.open(
            "a", encoding="utf-8", newline="", errors="backslashreplace"
        ) as making,  # a lone surrogate, as JSON escapes it
        progress.bar("answers", count_rows(file), counts.read) as bar,
    ):
        write = _csv_writer(making, part, state) if out.suffix == ".csv" else partial(_write_json, making)
        while window := list(islice(rows, WINDOW)):
            places = [
                (where, record if isinstance(record, RowError) else _text(record, columns)) for where, record in window
            ]
            answers = answer_rows(model, places, options, counts, report)
            for number, answer in answers:
                where, record = window[number]
                assert isinstance(record, dict)
                write(where, record, answer)
            making.flush()
            os.fsync(making.fileno())
            counts.bytes = making.tell()
            files.write_json(state, asdict(counts))
            bar.update(len(window))
    _finish(part, out)
    state.unlink()
    return counts


def _check_names(file: Path, out: Path) -> None:
    if not file.is_file():
        raise FilbertError(f"{file}: expected a file of texts, found {'a folder' if file.is_dir() else 'none'}")
    if file.suffix not in INPUTS:
        raise FilbertError(f"{file}: expected a file that ends in {', '.join(INPUTS)}")
    if out.suffix not in OUTPUTS:
        raise FilbertError(f"{out}: expected an output that ends in {', '.join(OUTPUTS)}")
    if file.resolve() == out.resolve() or out.is_dir():
        raise FilbertError(f"{out}: expected another file than the input, and no folder")


def _key(model: Predictor, folder: Path, file: Path, columns: tuple[str, ...], options: Options) -> dict[str, Any]:
    """What an unfinished output belongs to: this input, this model, these options."""
    stat, weights = file.stat(), (folder / model.card.model).stat()
    return {
        "file": str(file.resolve()), "size": stat.st_size, "time": stat.st_mtime_ns, "columns": list(columns),
        "model": files.sha256(folder / folders.CONFIG), "weights": [model.card.model, weights.st_size, weights.st_mtime_ns],
        "every": options.every, "abstain": options.abstain,
    }  # fmt: skip


def _resume(part: Path, state: Path, key: dict[str, Any]) -> Counts:
    """Where an unfinished run of the same input, model and options stopped; else the beginning."""
    try:
        found = Counts(**files.read_json(state))
        if found.key == key and part.stat().st_size >= found.bytes:
            os.truncate(part, found.bytes)
            progress.log(f"going on after {found.read} rows")
            return found
    except (FilbertError, OSError, TypeError):
        pass  # none, or damaged: from the beginning
    part.unlink(missing_ok=True)
    return Counts(key=key)


def _rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Record | RowError]]:
    """The records of a file; the first good one must have the columns.

    Raises:
        FilbertError: it has not.
    """
    checked = False
    for where, record in read_records(file, Task(kind=TaskKind.TEXT, columns=columns[:1], source="")):
        if file.suffix == ".txt" and len(columns) > 1 and isinstance(record, dict):
            texts = record[columns[0]].split("\t")
            found = dict(zip(columns, texts, strict=False))
            record = (
                found
                if len(texts) == len(columns)
                else RowError(f"{where}: expected {len(columns)} texts, a tab between them")
            )
        if not checked and isinstance(record, dict):
            if missing := [name for name in columns if name not in record]:
                raise FilbertError(
                    f"{where}: expected the column {' and '.join(missing)}, found {', '.join(record) or 'none'}; name the columns "
                    "with --columns"
                )
            checked = True
        yield where, record


def _text(record: Record, columns: tuple[str, ...]) -> Text:
    texts = tuple(record.get(name) for name in columns)
    return texts[0] if len(texts) == 1 else texts  # type: ignore[return-value]


def count_rows(file: Path) -> int:
    """About how many rows a file has: lines, of parquet exactly."""
    if file.suffix == ".parquet":
        try:
            return pq.ParquetFile(file).metadata.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise FilbertError(f"{file}: expected a parquet table, got {error}") from error
    with file.open("rb") as stream:
        lines = sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    return max(1, lines - (file.suffix in (".csv", ".tsv")))


def _joined(record: Record, answer: dict[str, Any], header: Sequence[str] = ()) -> Record:
    """A row and its answer; a name that the row has too, or some row before it, is `predicted_…`."""
    taken = {*record, *(name.removeprefix(PREFIX) for name in header if name.startswith(PREFIX))}
    taken |= {f"{name.split(SHARE)[0]}probabilities" for name in taken if SHARE in name}
    for name, value in answer.items():
        while name in taken:
            name = PREFIX + name
        record = record | {name: value}
    return record


def _write_json(out: IO[str], where: str, record: Record, answer: dict[str, Any]) -> None:
    row = {name: None if _is_no_number(value) else value for name, value in _joined(record, answer).items()}
    out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _is_no_number(value: Any) -> bool:
    """Whether JSON has no word for it: NaN or infinity."""
    return isinstance(value, float) and not math.isfinite(value)


def _csv_writer(out: IO[str], part: Path, state: Path) -> Callable[[str, Record, dict[str, Any]], None]:
    """Writes rows under the header of the first, which `part` has already where it goes on."""
    with part.open(encoding="utf-8", newline="") as stream:
        names = next(csv.reader(stream), [])
    writer = csv.writer(out, lineterminator="\n")

    def write(where: str, record: Record, answer: dict[str, Any]) -> None:
        flat = _flat(_joined(record, answer, names))
        if not names:
            names.extend(flat)
            writer.writerow(names)
        if unknown := [name for name in flat if name not in names]:
            for unfinished in (part, state):
                unfinished.unlink(missing_ok=True)
            raise FilbertError(
                f"{where}: expected the columns of the first row ({', '.join(names)}), got {unknown[0]}; write .jsonl or .parquet"
            )
        writer.writerow([flat.get(name, "") for name in names])

    return write


def _flat(row: Record) -> Record:
    """A row as cells: a column for each label's probability, other lists and mappings as JSON."""
    flat: Record = {}
    for name, value in row.items():
        if name.endswith("probabilities") and isinstance(value, dict):
            flat |= {f"{name.removesuffix('probabilities')}{SHARE}{label}": share for label, share in value.items()}
        else:
            flat[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
    return flat


def _finish(part: Path, out: Path) -> None:
    """The finished rows under the output's name; as parquet where it is called so."""
    if out.suffix != ".parquet":
        os.replace(part, out)
        return
    try:
        schema = None
        for table in _tables(part, None):
            schema = (
                table.schema
                if schema is None
                else pa.unify_schemas([schema, table.schema], promote_options="permissive")
            )
        with files.atomic_file(out) as making, pq.ParquetWriter(making, schema or pa.schema([])) as writer:
            for table in _tables(part, schema):
                writer.write_table(table)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        raise FilbertError(
            f"{out}: expected columns of one type each, got {error}; take an output that ends in .jsonl"
        ) from error
    part.unlink()


def _tables(part: Path, schema: pa.Schema | None) -> Iterator[pa.Table]:
    with part.open(encoding="utf-8") as lines:
        while rows := [json.loads(line) for line in islice(lines, WINDOW)]:
            names = dict.fromkeys(
                name for row in rows for name in row
            )  # a table has the columns of its first row alone
            yield pa.Table.from_pylist([dict.fromkeys(names) | rows[0], *rows[1:]], schema=schema)
