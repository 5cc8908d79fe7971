"""The task table: rows of `task_table` and `sources` in params.yaml, read strictly. No task is written in Python."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from filbert import FilbertError
from filbert.runtime import config
from filbert.runtime.config import Range

NAME = re.compile(
    r"[A-Za-z][A-Za-z0-9_]*"
)  # it becomes a folder's name, a part of a DVC stage's name and of a dotted key


class TaskKind(StrEnum):
    """What a row is and what is predicted of it."""

    SINGLE = "single"  # one text, a class
    PAIR = "pair"  # two texts, a class
    MULTILABEL = "multilabel"  # one text, any number of labels, each by itself: none, one or several
    REGRESSION = "regression"  # one or two texts, a number
    TAGGING = "tagging"  # one text, an IOB2 tag for each of its words: named entities
    TEXT = "text"  # one text, nothing is predicted: what transfer sets and the corpus are made of; a label is not read


SEPARATOR = "|"
CLASSES = (TaskKind.SINGLE, TaskKind.PAIR)
COLUMNS = {TaskKind.PAIR: (2,), TaskKind.REGRESSION: (1, 2)}  # how many text columns; one of the other kinds
METRICS: dict[TaskKind, tuple[str, ...]] = {  # names of evaluation.metrics
    **dict.fromkeys(CLASSES, ("accuracy", "f1", "matthews")),
    TaskKind.MULTILABEL: ("f1_micro", "f1_macro"),
    TaskKind.REGRESSION: ("pearson", "spearman"),
    TaskKind.TAGGING: ("entity_f1",),
    TaskKind.TEXT: (),
}


@dataclass(frozen=True)
class Source:
    """One place that files come from.

    `name` is a pip requirement, a hub repository or a path; `within` the folder inside it; `revision` a hub commit.
    `sha256` maps files (the wheel's own name, or paths within) to the hashes they must have.
    """

    kind: Literal["package", "hub", "folder"]
    name: str
    revision: str | None = None
    within: str = ""
    sha256: dict[str, str] | None = None

    @property
    def pins(self) -> dict[str, str]:
        """The pinned hashes by file; empty where none are."""
        return self.sha256 or {}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    `rename` maps raw column names to the ones used here; `where` keeps only the rows whose column has that value;
    `header` names the columns of a file that has none. `test` names the labelled files that are our test rows (GLUE hides
    the labels of its own test files, so its dev files are ours); without one, test rows are a slice of `train`. Rows that
    share the text of the column `group_by` never fall into different slices.
    """

    name: str = ""  # its key in `task_table`
    kind: TaskKind
    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()  # names in the order of their numbers, of tags too; none for regression
    metrics: tuple[str, ...] = ()  # their mean is the score
    source: str | Source  # a name in `sources`, or a source itself
    folder: str = ""  # its folder within the source
    train: str = "train"  # stem of the file of training rows; of texts it may be a pattern, for many files
    test: tuple[str, ...] = ()
    rename: dict[str, str] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    header: tuple[str, ...] = ()
    group_by: str = ""
    allow_unlabelled: bool = False  # rows without a label are kept apart instead of refused
    symmetric: bool = False  # a pair and its swap are the same row
    max_malformed: int = 0  # known malformed rows of published files: dropped and counted, up to so many
    label_range: tuple[float, ...] = ()  # of a regression label: lowest, highest
    separator: str = SEPARATOR  # between the labels of a multilabel row that is written as text
    teacher_columns: tuple[str, ...] = ()  # a probability for each label, from a teacher elsewhere
    languages: tuple[str, ...] = ()  # folders, one a language, that each hold the files; one model learns them all
    transfer: tuple[str, ...] = ()  # tasks of kind text whose sentences join its transfer set
    labels_per_class: int | None = (
        None  # labelled rows kept of each class, validation rows included; others lose their label
    )
    training_fraction: Annotated[float, Range(0, 1, above=True)] = 1.0  # of the length of every phase: a first look

    @property
    def files(self) -> dict[str, tuple[str, str]]:
        """The stems of its tables in its raw folder, and where each comes from: a folder of the source and a stem there."""
        stems = (self.train, *self.test)
        if not self.languages:
            return {stem: (self.folder, stem) for stem in stems}
        return {f"{stem}_{language}": (language, stem) for stem in stems for language in self.languages}

    @property
    def train_files(self) -> tuple[str, ...]:
        """The stems of its training tables."""
        return tuple(stem for stem, (_, original) in self.files.items() if original == self.train)

    @property
    def test_files(self) -> dict[str, str]:
        """Stems by test split: `test`, then `test_mismatched` and the like where there are more; or one a language."""
        stems = [stem for stem, (_, original) in self.files.items() if original != self.train]
        named = {f"test_{stem.rsplit('_', 1)[-1]}": stem for stem in stems}
        return named if self.languages or not stems else {"test": stems[0], **dict(list(named.items())[1:])}

    @property
    def outputs(self) -> int:
        """The width of the logits: classes or labels, or 1 for regression."""
        return len(self.labels) or 1


def names(params: Path = config.PARAMS) -> tuple[str, ...]:
    """All tasks, in the order of the table."""
    table = config.read_params(params).get("task_table")
    if not isinstance(table, dict):
        raise FilbertError(f"{params}: expected a section `task_table` with a row a task, got {table!r}")
    return tuple(table)


def find(name: str, params: Path = config.PARAMS) -> Task:
    """The task called `name`.

    Raises:
        FilbertError: there is none, or a key of its row is unknown, missing or does not fit the others.
    """
    known = names(params)
    if name not in known:
        raise FilbertError(
            f"no task `{name}` in {params}; known are {', '.join(known)}. "
            f"Add a row to `task_table`, by hand or by `make task NAME={name} DATA=folder-or-csv`"
        )
    where = f"{params}: task_table.{name}"
    if not NAME.fullmatch(name):
        raise FilbertError(f"{where}: expected a name of letters, digits and underscores that begins with a letter")
    task = config.section(f"task_table.{name}", Task, params)
    if task.name:
        raise FilbertError(f"{where}.name: unknown key; a task's name is its key in the table")
    check(task, where)
    return replace(task, name=name)


def source_of(task: Task, params: Path = config.PARAMS) -> Source:
    """Where the files of a task come from.

    Raises:
        FilbertError: its source is not in `sources`.
    """
    if isinstance(task.source, Source):
        return task.source
    known = config.section("sources", dict[str, Source], params)
    if task.source not in known:
        raise FilbertError(
            f"{params}: task_table.{task.name}.source: no `{task.source}` in `sources`, which has {', '.join(known)}; "
            "add it there, or write the source itself: {kind: folder, name: path}"
        )
    return known[task.source]


def transfer_texts(task: Task, params: Path = config.PARAMS) -> tuple[Task, ...]:
    """The texts whose sentences join the transfer set of a task.

    Raises:
        FilbertError: one of them is not of kind text.
    """
    found = tuple(find(name, params) for name in task.transfer)
    for text in found:
        if text.kind is not TaskKind.TEXT:
            raise _wrong(
                f"{params}: task_table.{task.name}", "transfer", "tasks of kind text", f"{text.name} ({text.kind})"
            )
    return found


def check(task: Task, where: str) -> None:
    """Refuse keys that do not fit each other; `where` is the row in params.yaml.

    Raises:
        FilbertError: names the key, what was expected and what came.
    """
    counts = COLUMNS.get(task.kind, (1,))
    if len(task.columns) not in counts:
        wanted = " or ".join(map(str, counts))
        raise _wrong(where, "columns", f"{wanted} of a task of kind {task.kind}", task.columns)
    _check_labels(task, where)
    if unknown := [name for name in task.metrics if name not in METRICS[task.kind]]:
        known = ", ".join(METRICS[task.kind]) or "none"
        raise _wrong(where, "metrics", f"metrics of kind {task.kind} ({known})", unknown)
    if not task.metrics and METRICS[task.kind]:
        raise _wrong(where, "metrics", f"some of {', '.join(METRICS[task.kind])}", "none")
    if "f1" in task.metrics and task.outputs != 2:
        raise _wrong(where, "metrics", "f1 of a task with two classes alone", f"{task.outputs} classes")
    if len(task.test_files) < len(task.files) - len(task.train_files):
        wanted = "stems of files" if not task.languages else "one file, and languages,"
        raise _wrong(
            where, "test", f"{wanted} that differ after their last `_`, which names the split", [*task.files][1:]
        )
    if task.group_by and task.group_by not in task.columns:
        raise _wrong(where, "group_by", f"one of the columns {', '.join(task.columns)}", task.group_by)
    if len(task.where) > 1:
        raise _wrong(where, "where", "one column and its value", task.where)
    if task.max_malformed < 0:
        raise _wrong(where, "max_malformed", "0 or more", task.max_malformed)
    if task.transfer and len(task.columns) > 1:
        raise _wrong(where, "transfer", "none, as rows are pairs, which single texts cannot be", task.transfer)
    if task.teacher_columns and (task.kind not in CLASSES or len(task.teacher_columns) != task.outputs):
        wanted = f"a column for each of {task.outputs} classes, of a task whose rows have a class"
        raise _wrong(where, "teacher_columns", wanted, task.teacher_columns)
    if task.teacher_columns and task.transfer:
        raise _wrong(where, "transfer", "none, as teacher_columns say nothing of other texts", task.transfer)
    for key in ("columns", "labels", "metrics", "test", "header", "languages", "transfer", "teacher_columns"):
        if len(set(getattr(task, key))) < len(getattr(task, key)):
            raise _wrong(where, key, "each once", getattr(task, key))


def _check_labels(task: Task, where: str) -> None:
    low_high = task.label_range
    if task.kind in (TaskKind.REGRESSION, TaskKind.TEXT) and task.labels:
        raise _wrong(where, "labels", f"none of a task of kind {task.kind}", task.labels)
    if task.kind in CLASSES and len(task.labels) < 2:
        raise _wrong(where, "labels", "the names of at least two classes", task.labels)
    if task.kind is TaskKind.MULTILABEL and len(task.labels) < 2:
        raise _wrong(
            where, "labels", "the names of at least two labels; one that is there or not makes two classes", task.labels
        )
    if task.kind is TaskKind.MULTILABEL and (not task.separator or any(task.separator in name for name in task.labels)):
        raise _wrong(where, "separator", "a text that is part of no label's name", repr(task.separator))
    if task.kind is not TaskKind.MULTILABEL and task.separator != SEPARATOR:
        raise _wrong(where, "separator", "none, as this is no multilabel task", repr(task.separator))
    if task.kind is TaskKind.TAGGING and (
        task.labels[:1] != ("O",) or not all(_is_tag(name) for name in task.labels[1:])
    ):
        raise _wrong(where, "labels", "IOB2 tags: O, then B-X and I-X of each type X", task.labels)
    if task.kind is TaskKind.REGRESSION and not (len(low_high) == 2 and low_high[0] < low_high[1]):
        raise _wrong(where, "label_range", "[lowest, highest] of a regression label", low_high)
    if task.kind is not TaskKind.REGRESSION and low_high:
        raise _wrong(where, "label_range", "none, as this is no regression", low_high)
    if task.labels_per_class is not None and (task.kind not in CLASSES or task.labels_per_class < 1):
        raise _wrong(
            where, "labels_per_class", "a positive number, of a task whose rows have a class", task.labels_per_class
        )


def _is_tag(name: str) -> bool:
    return name[:2] in ("B-", "I-") and len(name) > 2


def _wrong(where: str, key: str, expected: str, value: object) -> FilbertError:
    shown = f"[{', '.join(map(str, value))}]" if isinstance(value, Sequence) and not isinstance(value, str) else value
    return FilbertError(f"{where}.{key}: expected {expected}, got {shown}")
