"""Add a task of your own: look at a table, guess its row of `task_table`, and write it into params.yaml."""

import io
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

from filbert import FilbertError
from filbert.data import tasks
from filbert.data.formats import SUFFIXES, Record, RowError, read_records
from filbert.data.tasks import Task, TaskKind
from filbert.runtime import config, files
from stages import run

LABEL_NAMES = ("label", "labels", "class", "category", "target", "sentiment", "intent", "topic", "score", "rating", "y")
TEST_NAMES = ("test", "dev", "validation", "valid", "val", "eval")
FEW = 20  # distinct whole numbers that still count as classes
MANY = 200  # distinct names that are no classes any more
WIDTH = 128


@dataclass
class Column:
    """One column of the tables: how many rows have a value there, and which."""

    values: Counter[str] = field(default_factory=Counter)
    words: int = 0
    texts: int = 0  # values that are strings
    lists: int = 0  # rows that have a list, of labels or words

    def add(self, value: Any) -> None:
        """Count a value; empty ones are skipped."""
        text = "" if value is None else str(value).strip()
        if text:
            self.values[text] += 1
            self.words += len(text.split())
            self.texts += isinstance(value, str)

    @property
    def is_separated(self) -> bool:
        """Whether rows have several labels as text, with the separator between them."""
        return not self.lists and any(tasks.SEPARATOR in text for text in self.values)

    def split(self) -> "Column":
        """The same labels one by one, where rows have several with the separator between them."""
        found = Column(lists=self.rows, texts=self.texts)
        for text, count in self.values.items():
            found.values.update({part.strip(): count for part in text.split(tasks.SEPARATOR) if part.strip()})
        return found

    @property
    def rows(self) -> int:
        """How many rows have a value."""
        return self.values.total()

    @property
    def is_text(self) -> bool:
        """Whether it has running text: strings of several words, rarely the same."""
        return self.texts > 0 and self.words >= 2 * self.rows and len(self.values) > self.rows / 4

    @property
    def numbers(self) -> list[float]:
        """Its values as numbers; none where one is no number."""
        try:
            found = [float(text) for text in self.values]
        except ValueError:
            return []
        return found if all(map(math.isfinite, found)) else []

    @property
    def is_measure(self) -> bool:
        """Whether it is a number to be predicted rather than a class."""
        return bool(self.numbers) and (len(self.values) > FEW or any(number % 1 for number in self.numbers))


def task(
    name: Annotated[str, typer.Argument(help="what the task is to be called")],
    data: Annotated[
        Path, typer.Argument(help="a CSV, TSV, JSON lines, parquet or CoNLL file, or a folder with train and test")
    ],
    write: Annotated[bool, typer.Option("--write", help="add the row to params.yaml")] = False,
    params: Path = config.PARAMS,
) -> None:
    """Look at DATA, print what is in it and the row of `task_table` for the task NAME; with --write, add the row to params.yaml."""
    if not tasks.NAME.fullmatch(name):
        raise FilbertError(f"NAME: expected letters, digits and underscores after a letter, got {name!r}")
    if name in tasks.names(params):
        raise FilbertError(f"{params}: task_table.{name} exists; take another name, or edit that row")
    train, test = _tables(data.expanduser().absolute())
    columns = _columns(train)
    row = _guess(train, columns, test)
    tasks.check(config_row(row), f"{data}: guessed row")
    line = _flow(name, row)
    _describe(train, columns, row)
    if not write:
        print(f"\nthe row of task_table in {params}, which --write adds:\n{line}")
        return
    files.write_text(params, _insert(params.read_text(encoding="utf-8"), name, row, line))
    print(f"\nadded to task_table in {params}; correct it there where the guess is wrong:\n{line}\n")
    if row["kind"] == TaskKind.TEXT:
        print(f"next: add {name} to `texts`, and to `transfer` of the task it serves, then `make repro`")
    else:
        print(f"next: set `tasks: [{name}]` in {params}, then `make repro`")


def config_row(row: dict[str, Any]) -> Task:
    """The row as the task that it describes."""
    lists = {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
    return Task(**row | lists | {"kind": TaskKind(row["kind"]), "source": row["source"]["name"]})


def _tables(data: Path) -> tuple[Path, Path | None]:
    """The table of training rows, and that of test rows if there is one."""
    if data.is_file():
        if data.suffix not in SUFFIXES:
            raise FilbertError(f"{data}: expected a file that ends in {', '.join(SUFFIXES)}")
        return data, None
    found = {file.stem: file for file in sorted(data.iterdir()) if file.suffix in SUFFIXES} if data.is_dir() else {}
    if not found:
        raise FilbertError(f"{data}: expected a table or a folder with one ({', '.join(SUFFIXES)}), found none")
    train = found.get("train") or (next(iter(found.values())) if len(found) == 1 else None)
    if not train:
        raise FilbertError(f"{data}: expected a file called train among several, found {', '.join(sorted(found))}")
    test = next((found[stem] for stem in TEST_NAMES if stem in found), None)
    if unused := [file.name for file in found.values() if file not in (train, test)]:
        print(f"not used: {', '.join(unused)}")
    return train, test


def _read(file: Path) -> list[Record]:
    """All records of a table."""
    tagged = file.suffix in (".conll", ".txt") and _is_conll(file)
    shape = Task(kind=TaskKind.TAGGING if tagged else TaskKind.TEXT, columns=("text",), source="")
    records = []
    try:
        for _, record in read_records(file, shape):
            if isinstance(record, RowError):
                raise record
            records.append(record)
    except OSError as error:
        raise FilbertError(f"{file}: cannot be read: {error.strerror}") from error
    if not records:
        raise FilbertError(f"{file}: expected rows, found none")
    return records


def _is_conll(file: Path) -> bool:
    """Whether the first words of a file have IOB2 tags beside them."""
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        last = [line.split()[-1] for line in lines.readlines(1 << 16) if len(line.split()) > 1]
    return bool(last) and all(tag == "O" or tag[:2] in ("B-", "I-") or tag == "-X-" for tag in last)


def _columns(file: Path) -> dict[str, Column]:
    """The columns of a table by name, and what is in them; of lists, the words and the tags."""
    columns: dict[str, Column] = {}
    for record in _read(file):
        for name, value in record.items():
            column = columns.setdefault(name, Column())
            column.lists += isinstance(value, list)
            for item in value if isinstance(value, list) else [value]:
                column.add(item)
    return columns


def _guess(train: Path, columns: dict[str, Column], test: Path | None) -> dict[str, Any]:
    """The row of a task whose training table has these columns."""
    source = {"kind": "folder", "name": str(train.parent)}
    words, tags = (
        next((c for c in names if c in columns), "") for names in (("words", "tokens"), ("label", "ner_tags"))
    )
    if words and tags:
        names = _tag_names(columns[tags], train, tags)
        row: dict[str, Any] = {"kind": "tagging", "columns": ["sentence"], "labels": names}
        label = tags
    else:
        label = _label_column(columns)
        if separated := bool(label) and columns[label].is_separated:
            columns[label] = columns[label].split()
        texts = _text_columns(train, {name: column for name, column in columns.items() if name != label})
        row = {"kind": "pair" if len(texts) > 1 else "single", "columns": texts}
        if not label:
            row = {"kind": "text", "columns": [max(texts, key=lambda name: columns[name].words)]}
        else:
            row |= _labels(train, label, columns[label])
            given = columns[label].lists or columns[label].rows
            if not separated and given < max(columns[name].rows for name in texts):
                row["allow_unlabelled"] = True
    if metrics := tasks.METRICS[TaskKind(row["kind"])]:
        row["metrics"] = list(metrics) if row["kind"] == "regression" else [metrics[0]]
    row |= {"source": source, "train": train.stem}
    if test and label:
        held_out = _columns(test)
        if label in held_out and held_out[label].rows:
            row["test"] = [test.stem]
            found = held_out[label].split() if held_out[label].is_separated else held_out[label]
            if "label_range" in row:
                row["label_range"] = [farthest(*row["label_range"], *found.numbers) for farthest in (min, max)]
            if "labels" in row and (more := set(found.values) - set(row["labels"])):
                raise FilbertError(
                    f"{test}: expected labels of {train.name} ({', '.join(row['labels'])}), found {', '.join(sorted(more))}"
                )
    if label and label not in ("label", "ner_tags"):
        row["rename"] = {label: "label"}
    return row


def _tag_names(column: Column, file: Path, name: str) -> list[str]:
    """O, then the tags of each type."""
    kinds = sorted({tag[2:] for tag in column.values if tag[:2] in ("B-", "I-")})
    wrong = [tag for tag in column.values if tag != "O" and tag[:2] not in ("B-", "I-")]
    if wrong or not kinds:
        raise FilbertError(
            f"{file}: expected IOB2 tags (O, B-X, I-X) in column {name}, got {', '.join(wrong[:5]) or 'O alone'}"
        )
    return ["O", *(f"{place}-{kind}" for kind in kinds for place in "BI")]


def _label_column(columns: dict[str, Column]) -> str:
    """The column called as labels are; else one of lists, or the last that has few names or is a number; empty: there is none."""
    named = [name for wanted in LABEL_NAMES for name in columns if name.lower() == wanted]
    few = [
        name
        for name, column in columns.items()
        if not column.is_text and 1 < len(column.values) <= min(FEW, column.rows / 2)
    ]
    return next(iter([*named, *(name for name, column in columns.items() if column.lists), *few[::-1]]), "")


def _text_columns(file: Path, columns: dict[str, Column]) -> list[str]:
    """One text column or two; of more, those with the most words. A column of single words counts where it is the only one."""
    found = [name for name, column in columns.items() if column.is_text]
    strings = [name for name, column in columns.items() if column.texts and not column.numbers]
    if not found and len(strings) == 1:
        found = strings
    if not found:
        raise FilbertError(f"{file}: expected a column of texts, found {', '.join(columns) or 'no column'} without one")
    longest = sorted(found, key=lambda name: -columns[name].words / columns[name].rows)[:2]
    return [name for name in found if name in longest]


def _labels(file: Path, name: str, column: Column) -> dict[str, Any]:
    """The keys of a row that say what its labels are."""
    if column.is_measure and not column.lists:
        return {"kind": "regression", "label_range": [min(column.numbers), max(column.numbers)]}
    if not 1 < len(column.values) <= MANY:
        shown = ", ".join(list(column.values)[:5])
        raise FilbertError(
            f"{file}: expected 2 to {MANY} different labels in column {name}, got {len(column.values)} ({shown})"
        )
    found = {"labels": sorted(column.values, key=float if column.numbers else None)}
    return found | ({"kind": "multilabel"} if column.lists else {})


def _describe(file: Path, columns: dict[str, Column], row: dict[str, Any]) -> None:
    print(f"{file}: {max(column.lists or column.rows for column in columns.values())} rows, kind {row['kind']}")
    for name, column in columns.items():
        if row.get("rename", {}).get(name, name) in ("label", "ner_tags"):
            shown = ", ".join(f"{text} {count}" for text, count in column.values.most_common(10))
            print(f"  {name}: the label, {row.get('label_range', shown)}")
        elif name in row["columns"] or (row["kind"] == "tagging" and name in ("words", "tokens")):
            print(f"  {name}: text, {column.words / column.rows:.0f} words on average")
        else:
            print(f"  {name}: not used")


def _flow(name: str, row: dict[str, Any]) -> str:
    """The row as params.yaml writes it."""
    yaml, out = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = True, WIDTH
    yaml.dump(row, out)
    first, *more = out.getvalue().splitlines()
    return "\n".join([f"  {name}: {first}".rstrip(), *(f"    {line.strip()}" for line in more)])


def _insert(text: str, name: str, row: dict[str, Any], line: str) -> str:
    """`text` of params.yaml with a line at the end of `task_table`: everything else, comments too, stays as it is."""
    top = YAML().load(text)
    below = [top.lc.key(key)[0] for key in top if top.lc.key(key)[0] > top.lc.key("task_table")[0]]
    lines = text.splitlines()
    end = min(below, default=len(lines))
    while end and (not lines[end - 1].strip() or lines[end - 1].startswith("#")):
        end -= 1
    new = "\n".join([*lines[:end], line, *lines[end:]]) + "\n"
    expected = (plain := YAML(typ="safe")).load(text)
    expected["task_table"][name] = row
    if plain.load(new) != expected:
        raise FilbertError(
            f"params.yaml: expected `task_table` with a row a line, indented by two spaces; add this row by hand:\n{line}"
        )
    return new


if __name__ == "__main__":
    run(task)
