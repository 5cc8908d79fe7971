"""Raw tables become valid rows: columns renamed, labels as numbers, texts hashed; a row that is not valid is named."""

import glob
import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from filbert.data.arrow import TEACHER_COLUMN, Row
from filbert.data.formats import SUFFIXES, Located, Record, RowError, read_records
from filbert.data.tasks import Task, TaskKind
from filbert.runtime.files import is_unicode

ROUNDING = 0.02  # by which the probabilities of a row may miss a sum of 1
SHOWN = 8  # values of a column that an error lists


def read_rows(folder: Path, stem: str, task: Task, counts: Counter[str] | None = None) -> Iterator[Row]:
    """The valid rows of the table `stem` in `folder`, in the file's order; `idx` counts the file's data rows from 0.

    Texts without labels may lie in many files: `stem` is a pattern then. Empty sentences and texts are skipped.

    Raises:
        RowError: there is no such table or several, no row is selected by `where`, or a row is not valid and more of them
            than `max_malformed` were not; `counts` has how many.
    """
    counts = Counter() if counts is None else counts
    selected = False
    others: dict[str, None] = {}  # values that `where` rejects
    for idx, (where, record) in enumerate(chain.from_iterable(_tables(folder, stem, task))):
        try:
            if isinstance(record, RowError):
                raise record
            if _is_empty(record, task):
                continue
            if rejected := _rejected(record, task, where):
                others |= dict.fromkeys(rejected) if len(others) < SHOWN else {}
                continue
            selected = True
            yield _validate(idx, record, task, where)
        except RowError:
            counts["flawed"] += 1
            if counts["flawed"] > task.max_malformed:
                raise
    if others and not selected:
        raise RowError(
            f"{folder}: no row of {stem} has {task.where} (task_table.{task.name}.where); found {', '.join(others)}"
        )


def _tables(folder: Path, stem: str, task: Task) -> Iterator[Iterator[Located]]:
    name = stem if task.kind is TaskKind.TEXT else glob.escape(stem)
    found = [file for suffix in SUFFIXES for file in sorted(folder.glob(f"{name}{suffix}"))]
    if not found:
        unlisted = task.kind is TaskKind.TEXT and not folder.exists()
        remedy = f"list {task.name} under `texts` in params.yaml" if unlisted else "fetch it again"
        raise RowError(f"{folder}: no table {stem} ({', '.join(SUFFIXES)}) for task {task.name}; {remedy}")
    if len(found) > 1 and task.kind is not TaskKind.TEXT:
        names = ", ".join(file.name for file in found)
        raise RowError(f"{folder}: expected one table {stem} for task {task.name}, got {names}; remove all but one")
    return (read_records(file, task) for file in found)


def _is_empty(record: Record, task: Task) -> bool:
    """Whether a tagged row or a text without labels has no words."""
    if task.kind is TaskKind.TAGGING:
        return record.get("words", record.get("tokens")) == []
    raw = next((old for old, new in task.rename.items() if new == task.columns[0]), task.columns[0])
    value = record.get(raw, 0)
    return task.kind is TaskKind.TEXT and (value is None or (isinstance(value, str) and not _is_visible(value)))


def _rejected(record: Record, task: Task, where: str) -> list[str]:
    """The values by which `where` rejects a record."""
    if missing := [column for column in task.where if column not in record]:
        raise RowError(f"{where}: no column {missing[0]} (task_table.{task.name}.where); found {', '.join(record)}")
    return [str(record[column]) for column, value in task.where.items() if str(record[column]) != value]


def _validate(idx: int, record: Record, task: Task, where: str) -> Row:
    if twice := [new for old, new in task.rename.items() if {old, new} <= record.keys() - (task.rename.keys() - {old})]:
        raise RowError(
            f"{where}: column {twice[0]} is there beside the one that task_table.{task.name}.rename calls so; leave one out"
        )
    record = {task.rename.get(name, name): value for name, value in record.items()}
    if task.kind is TaskKind.TAGGING:
        record = _join_words(record, task, where)
    labelled = task.kind is TaskKind.TEXT or task.allow_unlabelled or "label" in record
    if missing := [name for name in (*task.columns, *([] if labelled else ["label"])) if name not in record]:
        raise RowError(f"{where}: no column {', '.join(missing)} for task {task.name}; found {', '.join(record)}")
    for name in task.columns:
        if not isinstance(record[name], str) or not _is_visible(record[name]):
            raise RowError(f"{where}: expected text in column {name}, got {record[name]!r}")
        if not is_unicode(record[name]):
            raise RowError(f"{where}: expected valid Unicode in column {name}, got a lone surrogate")
    texts = {name: record[name] for name in task.columns}
    given = record.get("label")
    if task.kind is TaskKind.MULTILABEL:
        label: Any = _multi_hot(given, task, where)
    else:
        label = given if task.kind is TaskKind.TAGGING else _label(given, task, where)
    imported = {TEACHER_COLUMN: _probabilities(record, task, where)} if task.teacher_columns else {}
    return {"idx": idx, **texts, "label": label, "hash": text_hash(*texts.values()), **imported}


def _probabilities(record: Record, task: Task, where: str) -> tuple[float, ...] | None:
    """What a teacher elsewhere says of a row; None where its columns are missing or empty, as they may be of test rows."""
    given = [record.get(name) for name in task.teacher_columns]
    if all(value is None or not str(value).strip() for value in given):
        return None
    try:
        found = tuple(float(str(value)) for value in given)
    except ValueError:
        found = (float("nan"),)
    if not (min(found) >= 0 and abs(sum(found) - 1) <= ROUNDING):
        columns = ", ".join(task.teacher_columns)
        raise RowError(f"{where}: expected probabilities that sum to 1 in {columns}, got {', '.join(map(str, given))}")
    return found


def _is_visible(text: str) -> bool:
    """Whether a text has a character other than spaces, control and zero-width characters."""
    return any(char.isprintable() and not char.isspace() for char in text)


def _join_words(record: Record, task: Task, where: str) -> Record:
    """A tagged row as a text, its words with single spaces between them, and the numbers of their tags."""
    words, tags = record.get("words", record.get("tokens")), record.get("label", record.get("ner_tags"))
    if not (isinstance(words, list) and isinstance(tags, list) and len(words) == len(tags)):
        raise RowError(f"{where}: expected words and as many tags, got {words} and {tags}")
    if not all(isinstance(word, str) for word in words):
        raise RowError(f"{where}: expected words that are texts, got {words}")
    plain = ["".join(word.split()) for word in words]  # a word with a space in it would be two in the text
    if not all(plain):
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
    return {task.columns[0]: " ".join(plain), "label": tuple(map(task.labels.index, names))}


def _multi_hot(value: Any, task: Task, where: str) -> tuple[int, ...] | None:
    """Of each label whether it applies, from a list or from names with the separator between them.

    No label applies where the list or the text is empty; the text of an unlabelled row is empty where the task may have such rows,
    and `[]` says that none applies there.
    """
    if task.allow_unlabelled and (value is None or (isinstance(value, str) and not value.strip())):
        return None
    if not isinstance(value, str | list):
        raise RowError(
            f"{where}: expected a list of labels, or text with {task.separator!r} between them, got {value!r}; `allow_unlabelled: "
            "true` keeps rows without a label apart"
        )
    empty = isinstance(value, str) and value.strip() in ("", "[]")
    given = [] if empty else value.split(task.separator) if isinstance(value, str) else value
    numbers = [_class_number(one, task, where) for one in given]
    if len(set(numbers)) < len(numbers):
        raise RowError(f"{where}: expected each label once, got {value!r}")
    return tuple(int(number in numbers) for number in range(len(task.labels)))


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
    return _class_number(value, task, where)


def _class_number(value: Any, task: Task, where: str) -> int:
    """The number of a label that is given by its name or number."""
    text = "" if value is None else str(value).strip()
    number_text, named_by_number = text.removesuffix(".0"), any(name.isdecimal() for name in task.labels)
    for found in (text, number_text):
        if found in task.labels:
            return task.labels.index(found)
    if not named_by_number and number_text.isdecimal() and int(number_text) < len(task.labels):
        return int(number_text)
    allowed = ", ".join(task.labels) + ("" if named_by_number else f" or 0 to {len(task.labels) - 1}")
    raise RowError(f"{where}: expected a label out of {allowed}, got {value!r}")


def normalize_text(text: str) -> str:
    """The text by which rows are compared: compatibility forms (NFKC), lower case, single spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def text_hash(*texts: str) -> int:
    """A signed 64-bit hash of the exact texts of a row, by which the teacher's cached outputs are joined to it."""
    digest = hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def low_bits(text_hash: int, count: int) -> int:
    """The last `count` bits of a hash, as a number that is not negative."""
    return text_hash & ((1 << count) - 1)
