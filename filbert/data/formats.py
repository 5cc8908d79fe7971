"""Raw tables by format, read strictly: TSV as GLUE writes it, CSV, JSON lines, parquet, plain text, CoNLL; a record is a dict."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filbert import FilbertError
from filbert.data.tasks import Task, TaskKind

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet", ".txt", ".conll")
BATCH = 4096  # rows of a parquet file in memory at a time
Record = dict[str, Any]


class RowError(FilbertError):
    """A row is not what its task declares; the message names the file, the row, what was expected and what came."""


Located = tuple[str, Record | RowError]  # where it lies (file and line), and a record, or why there is none


def read_records(file: Path, task: Task) -> Iterator[Located]:
    """The records of a table, under its own column names, in the file's order. A malformed line comes as its error.

    Raises:
        RowError: the file as a whole cannot be read: its encoding, its header, its quotes.
    """
    if file.suffix == ".tsv":
        return _read_delimited(file, task.header, "\t", csv.QUOTE_NONE)
    if file.suffix == ".csv":
        return _read_delimited(file, (), ",", csv.QUOTE_MINIMAL)
    if file.suffix == ".jsonl":
        return _read_json_lines(file)
    if file.suffix == ".parquet":
        return _read_parquet(file)
    return _read_conll(file, task) if task.kind is TaskKind.TAGGING else _read_text(file, task)


def _lines(file: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, without a byte order mark."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield from stream
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error


def _not_utf8(file: Path) -> RowError:
    content = file.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return RowError(
            f"{file}, line {line}: expected UTF-8, got the byte {content[error.start]:#x}; convert the file"
        )
    return RowError(f"{file}: expected UTF-8; the file has changed while it was read")


def _read_delimited(file: Path, header: tuple[str, ...], delimiter: str, quoting: int) -> Iterator[Located]:
    """GLUE's TSV has no quoting: a quote is a plain character. In CSV a quoted field may have line breaks in it."""
    csv.field_size_limit(2**31 - 1)
    plain = (line.replace("\0", "") for line in _lines(file))
    rows = csv.reader(plain, delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    line = 1
    try:
        names = header or _unique_names(next(rows, []), f"{file}, line 1")
        line = rows.line_num + 1
        for fields in rows:
            where, line = f"{file}, line {line}", rows.line_num + 1
            if not fields and quoting != csv.QUOTE_NONE:
                continue  # an empty line of a CSV file
            if len(fields) != len(names):
                expected = f"{len(names)} columns ({', '.join(names)})"
                yield where, RowError(f"{where}: expected {expected}, got {len(fields)}")
            else:
                yield where, dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise RowError(f"{file}, from line {line} on: expected quoted fields as in CSV, got {error}") from error


def _unique_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    counts = Counter(names)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise RowError(
            f"{where}: expected each column once, got {', '.join(map(repr, repeated))} several times; rename them"
        )
    return tuple(counts)


def _read_json_lines(file: Path) -> Iterator[Located]:
    def unique(pairs: list[tuple[str, Any]]) -> Record:
        return dict(zip(_unique_names((name for name, _ in pairs), where), (value for _, value in pairs), strict=True))

    for number, line in enumerate(_lines(file), 1):
        where = f"{file}, line {number}"
        if line.strip():
            try:
                record = json.loads(line, object_pairs_hook=unique)
            except RowError as error:
                yield where, error
                continue
            except (json.JSONDecodeError, RecursionError) as error:
                yield where, RowError(f"{where}: expected a JSON object, got {line.strip()[:60]!r} ({error})")
                continue
            yield (
                where,
                record
                if isinstance(record, dict)
                else RowError(f"{where}: expected a JSON object, got {record!r:.60}"),
            )


def _read_parquet(file: Path) -> Iterator[Located]:
    number = 0
    try:
        with pq.ParquetFile(file) as table:
            _unique_names(table.schema_arrow.names, str(file))
            for batch in table.iter_batches(batch_size=BATCH):
                for number, record in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                    yield f"{file}, row {number}", record
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise RowError(f"{file}, after row {number}: expected a parquet table, got {what}") from error


def _read_text(file: Path, task: Task) -> Iterator[Located]:
    """A text a line; empty lines are skipped."""
    for number, line in enumerate(_lines(file), 1):
        if line.strip():
            yield f"{file}, line {number}", {task.columns[0]: line.strip()}


def _read_conll(file: Path, task: Task) -> Iterator[Located]:
    """A word and, last, its tag a line, an empty line after each sentence; `en:word` where the file is one of several
    languages'. A sentence with a malformed line comes as its error."""
    prefix = f"{file.stem.rsplit('_', 1)[-1]}:" if task.languages else ""
    words: list[str] = []
    tags: list[str] = []
    malformed: RowError | None = None
    first = 0
    for number, line in enumerate(chain(_lines(file), [""]), 1):
        if line.strip() and not line.startswith("-DOCSTART-"):
            first = first or number
            fields = [field.strip() for field in line.split("\t" if "\t" in line else " ") if field.strip()]
            if len(fields) < 2:
                wanted = f"{file}, line {number}: expected a word and its tag, got {line.strip()!r}"
                malformed = malformed or RowError(wanted)
            words.append(fields[0].removeprefix(prefix))
            tags.append(fields[-1])
        elif words:
            yield f"{file}, line {first}", malformed or {"words": words, "label": tags}
            words, tags, malformed, first = [], [], None, 0
