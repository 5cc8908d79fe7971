"""Valid rows become train, validation and test splits: deduplicated, checked for leaks, as Arrow tables.

Where GLUE hides its test labels, its dev files are our test rows and a slice of train is our validation: choices are
made on validation alone. Slices are drawn by a hash of the text, so that they do not depend on the order of the rows.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from filbert.data.arrow import Row, row_schema
from filbert.data.containment import group_by_containment
from filbert.data.row_validation import RowError, normalize_text, read_rows
from filbert.data.tasks import CLASSES, Task, TaskKind
from filbert.runtime.config import Fraction, PositiveInt

SPARE = 1.1  # a slice is at most so many times as large as wanted


@dataclass(frozen=True)
class PrepareConfig:
    """Fractions of the training rows that become validation rows, and test rows where the task has no test file."""

    validation: Fraction
    test: Fraction
    max_rows: PositiveInt  # no slice is larger
    seed: int


@dataclass(frozen=True)
class Prepared:
    """The tables of a task by split, and counts of rows: kept by split, dropped by reason."""

    tables: dict[str, pa.Table]
    counts: dict[str, int]


def prepare(folder: Path, task: Task, config: PrepareConfig) -> Prepared:
    """Split the raw tables of `task` in `folder`.

    The splits are `train`, `validation`, `test` (and `test_…` where the task has several test files), and `unlabelled`
    where there are rows without a label or `labels_per_class` drops it. A row equal to a test row after normalisation
    leaves the training rows; test rows that come in a file of their own are never changed.

    Raises:
        RowError: a file is missing or malformed, a split is empty, or all labels are the same.
    """
    counts: Counter[str] = Counter()
    tests: dict[str, list[Row]] = {
        n: list(read_rows(folder, stem, task, counts)) for n, stem in task.test_files.items()
    }
    for name, stem in task.test_files.items():
        if missing := sum(row["label"] is None for row in tests[name]):
            raise RowError(
                f"{folder / stem}: expected a label for each test row, got none for {missing} of {len(tests[name])} rows; leave "
                f"the file out of task_table.{task.name}.test, or these rows out of the file"
            )
    rows = list(_distinct(_numbered(folder, task, counts), task, counts))
    unlabelled = [row for row in rows if row["label"] is None]
    rows = [row for row in rows if row["label"] is not None]
    if not tests:
        rows, tests["test"] = _slice(rows, task, config.test, config)
    labelled, rows = len(rows), list(_without(rows, tests, task, counts))
    if labelled and not rows:
        raise RowError(
            f"{folder}: all {labelled} training rows of task {task.name} equal test rows; expected other texts"
        )
    if task.labels_per_class is not None:
        rows, others = _keep_labels(rows, task, task.labels_per_class)
        unlabelled += others
    train, validation = _slice(rows, task, config.validation, config)
    splits = {"train": train, "validation": validation, **tests}
    if unlabelled := list(_without(unlabelled, {"validation": validation, **tests}, task, counts)):
        splits["unlabelled"] = unlabelled
    for name, split in splits.items():
        if not split:
            raise RowError(
                f"{folder}: no row is left for {name} of task {task.name}; its files hold too few rows, or texts that lie in most "
                "others, which stay together: leave such rows out"
            )
        counts[name] = len(split)
    if task.kind in (*CLASSES, TaskKind.MULTILABEL) and len({row["label"] for row in train}) == 1:
        raise RowError(
            f"{folder}: expected training rows of several classes for task {task.name}, got {_named(train[0], task)} in all "
            f"{len(train)}"
        )
    tables = {name: pa.Table.from_pylist(split, schema=row_schema(task)) for name, split in splits.items()}
    return Prepared(tables, dict(counts))


def _named(row: Row, task: Task) -> str:
    """The name of a row's class, or its labels."""
    if task.kind is not TaskKind.MULTILABEL:
        return task.labels[row["label"]]
    return " and ".join(name for name, applies in zip(task.labels, row["label"], strict=True) if applies) or "no label"


def _numbered(folder: Path, task: Task, counts: Counter[str]) -> Iterator[Row]:
    """The training rows of all files; `idx` counts on from file to file."""
    start = idx = 0
    for stem in task.train_files:
        for row in read_rows(folder, stem, task, counts):
            idx = start + row["idx"]
            yield row | {"idx": idx}
        start = idx + 1


def row_key(row: Row, task: Task) -> str:
    """A key that equal rows share: their normalised texts, in either order where the task is symmetric."""
    texts = [normalize_text(row[name]) for name in task.columns]
    return "\x1f".join(sorted(texts) if task.symmetric else texts)


def _distinct(rows: Iterator[Row], task: Task, counts: Counter[str]) -> Iterator[Row]:
    """The first of each group of equal rows; none of a group whose labels disagree."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row_key(row, task), []).append(row)
    for group in groups.values():
        if len({row["label"] for row in group} - {None}) > 1:
            counts["conflicting"] += len(group)
            continue
        counts["duplicate"] += len(group) - 1
        yield next((row for row in group if row["label"] is not None), group[0])


def _without(rows: list[Row], held_out: dict[str, list[Row]], task: Task, counts: Counter[str]) -> Iterator[Row]:
    """The rows that equal no held-out row."""
    seen = {row_key(row, task) for split in held_out.values() for row in split}
    for row in rows:
        if row_key(row, task) in seen:
            counts["leaking"] += 1
        else:
            yield row


def _slice(rows: list[Row], task: Task, fraction: float, config: PrepareConfig) -> tuple[list[Row], list[Row]]:
    """The other rows, and the rows of a slice of about `fraction`.

    Rows that share the text of `group_by` stay together, and so do those that lie inside others, as the phrases of a sentence;
    but for a few words that do, which may lie in many, and are no part of a slice. Nor is a group that would make it larger by
    more than a tenth, as of all texts that end in the same sentence.
    """
    wanted = min(round(fraction * len(rows)), config.max_rows)
    keys = [row_key(row, task) for row in rows]
    names = [normalize_text(row[task.group_by]) for row in rows] if task.group_by else keys
    numbers, fragment = group_by_containment(keys, names)
    groups: dict[int, list[int]] = {}
    for at, number in enumerate(numbers.tolist()):
        groups.setdefault(number, []).append(at)
    drawn = {min(names[at] for at in group): group for group in groups.values() if not fragment[group].all()}
    taken: set[int] = set()
    for name in sorted(drawn, key=lambda name: hashlib.sha256(f"{config.seed}\x1f{name}".encode()).digest()):
        if len(taken) >= wanted:
            break
        if len(taken) + len(drawn[name]) > 1 + SPARE * wanted:
            continue
        taken.update(rows[at]["idx"] for at in drawn[name])
    return [row for row in rows if row["idx"] not in taken], [row for row in rows if row["idx"] in taken]


def _keep_labels(rows: list[Row], task: Task, each: int) -> tuple[list[Row], list[Row]]:
    """`each` rows of every class, drawn by a hash of the text; and all others, without their labels.

    Raises:
        RowError: a class has fewer.
    """
    drawn = sorted(rows, key=lambda row: hashlib.sha256(row_key(row, task).encode()).digest())
    taken = {row["idx"] for label in range(task.outputs) for row in [r for r in drawn if r["label"] == label][:each]}
    if len(taken) < each * task.outputs:
        raise RowError(
            f"task_table.{task.name}.labels_per_class: expected at least {each} rows of each of {task.outputs} classes, got "
            f"{dict(Counter(task.labels[row['label']] for row in rows))}"
        )
    return [row for row in rows if row["idx"] in taken], [
        row | {"label": None} for row in rows if row["idx"] not in taken
    ]
