"""Raw tables are read strictly: TSV as GLUE writes it, CSV, JSON lines, parquet, plain text; every row is valid or named."""

import csv
import hashlib
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from filbert import FilbertError
from filbert.data.arrow import Row
from filbert.data.tasks import Task, TaskKind

SUFFIXES = (".tsv", ".csv", ".jsonl", ".parquet", ".txt", ".conll")


class RowError(FilbertError):
    """A row is not what its task declares; says which file, which row, what was expected and what came."""


def read_rows(folder: Path, stem: str, task: Task, counts: Counter[str] | None = None) -> Iterator[Row]:
    """The valid rows of the table `stem` in `folder`, in the file's order; `idx` counts the file's data rows from 0.

    Texts without labels may lie in many files, and `stem` be a pattern. Empty sentences and texts are passed over.
    """
    found = [file for suffix in SUFFIXES for file in sorted(folder.glob(f"{stem}{suffix}"))]
    if not found:
        raise RowError(f"{folder}: no table {stem} ({', '.join(SUFFIXES)}) for task {task.name}; fetch it again")
    plain = _read_conll if task.kind is TaskKind.TAGGING else _read_lines
    readers = {".tsv": _read_tsv, ".txt": plain, ".conll": plain}
    taken = found if task.kind is TaskKind.TEXT else found[:1]
    records = chain.from_iterable(readers.get(file.suffix, _read_table)(file, task) for file in taken)
    counts = Counter() if counts is None else counts
    for idx, (where, record) in enumerate(records):
        try:
            if isinstance(record, RowError):
                raise record
            if _is_empty(record, task):
                continue
            if all(str(record.get(column)) == value for column, value in task.where.items()):
                yield _valid(idx, record, task, where)
        except RowError:
            counts["flawed"] += 1
            if counts["flawed"] > task.max_malformed:
                raise


def _is_empty(record: Row, task: Task) -> bool:
    """Whether a tagged row or a text without labels has no words."""
    if task.kind is TaskKind.TAGGING:
        return record.get("words", record.get("tokens")) == []
    raw = next((old for old, new in task.rename.items() if new == task.columns[0]), task.columns[0])
    value = record.get(raw, 0)
    return task.kind is TaskKind.TEXT and (value is None or (isinstance(value, str) and not value.strip()))


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
        raise _not_utf8(file, number, error) from error


def _read_lines(file: Path, task: Task) -> Iterator[tuple[str, Row | RowError]]:
    """Plain text, a text a line; empty lines are passed over."""
    number = 0
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file}, line {number}", {task.columns[0]: line.strip()}
    except UnicodeDecodeError as error:
        raise _not_utf8(file, number, error) from error


def _read_conll(file: Path, task: Task) -> Iterator[tuple[str, Row | RowError]]:
    """CoNLL's format: a word and, last, its tag a line, an empty line after each sentence; `en:word` where the file is one of
    several languages'. A sentence with a broken line is yielded as its error."""
    prefix = f"{file.stem.rsplit('_', 1)[-1]}:" if task.languages else ""
    words: list[str] = []
    tags: list[str] = []
    broken: RowError | None = None
    first = number = 0
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(chain(lines, [""]), 1):
                if line.strip() and not line.startswith("-DOCSTART-"):
                    first = first or number
                    fields = [field.strip() for field in line.split("\t" if "\t" in line else " ") if field.strip()]
                    if len(fields) < 2:
                        broken = broken or RowError(
                            f"{file}, line {number}: expected a word and its tag, got {line.strip()!r}"
                        )
                    words.append(fields[0].removeprefix(prefix))
                    tags.append(fields[-1])
                elif words:
                    yield f"{file}, line {first}", broken or {"words": words, "label": tags}
                    words, tags, broken, first = [], [], None, 0
    except UnicodeDecodeError as error:
        raise _not_utf8(file, number, error) from error


def _not_utf8(file: Path, number: int, error: UnicodeDecodeError) -> RowError:
    return RowError(f"{file}, after line {number}: expected UTF-8, got {error}; convert the file")


def _read_table(file: Path, task: Task) -> Iterator[tuple[str, Row | RowError]]:
    """CSV, JSON lines or parquet, read by `datasets`; texts some rows at a time."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    kind = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}[file.suffix]
    strict = {"keep_default_na": False} if kind == "csv" else {}
    number = 0
    with tempfile.TemporaryDirectory(prefix="filbert-") as cache:
        try:
            streaming = task.kind is TaskKind.TEXT
            more = {} if streaming else {"keep_in_memory": True}
            found = load_dataset(
                kind, data_files=str(file), split="train", cache_dir=cache, streaming=streaming, **more, **strict
            )
            for number, record in enumerate(found, 1):
                yield f"{file}, row {number}", dict(record)
        except Exception as error:
            cause = error.__cause__ or error
            after = f", after row {number}" if number else ""
            raise RowError(f"{file}{after}: expected a {file.suffix[1:]} table in UTF-8, got {cause}") from error


def _valid(idx: int, record: Row, task: Task, where: str) -> Row:
    record = {task.rename.get(name, name): value for name, value in record.items()}
    if task.kind is TaskKind.TAGGING:
        record = _tagged(record, task, where)
    missing = [name for name in task.columns if name not in record]
    if missing:
        raise RowError(f"{where}: no column {', '.join(missing)} for task {task.name}; found {', '.join(record)}")
    for name in task.columns:
        if not isinstance(record[name], str) or not record[name].strip():
            raise RowError(f"{where}: expected text in column {name}, got {record[name]!r}")
    texts = {name: record[name] for name in task.columns}
    label = record["label"] if task.kind is TaskKind.TAGGING else _label(record.get("label"), task, where)
    return {"idx": idx, **texts, "label": label, "hash": text_hash(*texts.values())}


def _tagged(record: Row, task: Task, where: str) -> Row:
    """A tagged row as a text, its words with single spaces between them, and the numbers of their tags."""
    words, tags = record.get("words", record.get("tokens")), record.get("label", record.get("ner_tags"))
    if words is None or tags is None or len(words) != len(tags):
        raise RowError(f"{where}: expected words and as many tags, got {words} and {tags}")
    bare = ["".join(word.split()) for word in words]  # a space within a word would make two of it
    if not all(bare):
        raise RowError(f"{where}: expected a word in each place, got {words}")
    numbers = range(len(task.labels))
    names = [task.labels[tag] if type(tag) is int and tag in numbers else str(tag) for tag in tags]
    before = "O"
    for place, name in enumerate(names, 1):
        if name not in task.labels:
            raise RowError(f"{where}, word {place}: expected a tag out of {', '.join(task.labels)}, got {name!r}")
        if name.startswith("I-") and before[2:] != name[2:]:
            raise RowError(
                f"{where}, word {place}: {name} follows {before}: in IOB2 an entity begins with B-{name[2:]}"
            )
        before = name
    return {task.columns[0]: " ".join(bare), "label": tuple(map(task.labels.index, names))}


def _label(value: Any, task: Task, where: str) -> float | int | None:
    text = "" if value is None else str(value).strip()
    if task.kind is TaskKind.TEXT or (not text and task.allow_unlabelled):
        return None
    if task.kind is TaskKind.REGRESSION:
        low, high = task.label_range
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


def normalize_text(text: str) -> str:
    """What two rows are compared by: compatibility forms, lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def text_hash(*texts: str) -> int:
    """A signed 64-bit hash of the exact text, by which the teacher's words are joined to a row."""
    digest = hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def low_bits(text_hash: int, count: int) -> int:
    """The last `count` bits of a hash, which are no negative number."""
    return text_hash & ((1 << count) - 1)
