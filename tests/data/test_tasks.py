"""The task table: rows of params.yaml, read strictly, whose errors name the key."""

from pathlib import Path

import pytest
from tiny import find_task

from filbert import FilbertError
from filbert.data import tasks
from filbert.data.tasks import Source, TaskKind

TABLE = """
sources:
  here: {kind: folder, name: /data}
task_table:
  reviews: {kind: text, columns: [text], source: here}
  tickets: {kind: single, columns: [text], labels: [billing, other], metrics: [accuracy], source: here, transfer: [reviews]}
  prices: {kind: regression, columns: [text], label_range: [0, 9.5], metrics: [pearson], source: {kind: folder, name: /prices}}
"""


def params(tmp_path: Path, text: str = TABLE) -> Path:
    (tmp_path / "params.yaml").write_text(text)
    return tmp_path / "params.yaml"


def test_a_row_is_a_task_and_its_source_is_named_or_written_in_it(tmp_path: Path) -> None:
    file = params(tmp_path)
    assert tasks.names(file) == ("reviews", "tickets", "prices")
    tickets, prices = tasks.find("tickets", file), tasks.find("prices", file)
    assert (tickets.name, tickets.kind, tickets.outputs, tickets.train, tickets.rename) == (
        "tickets",
        "single",
        2,
        "train",
        {},
    )
    assert isinstance(tickets.kind, TaskKind)
    assert prices.label_range == (0.0, 9.5)
    assert tasks.source_of(tickets, file) == Source("folder", "/data")
    assert tasks.source_of(prices, file) == Source("folder", "/prices")
    assert [text.name for text in tasks.transfer_texts(tickets, file)] == ["reviews"]


def test_every_row_of_the_shipped_table_is_sound() -> None:
    for name in tasks.names():
        task = find_task(name)
        assert tasks.source_of(task).name
        tasks.transfer_texts(task)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind: single", "kind: double", "task_table.tickets.kind: expected"),
        ("[billing, other]", "[billing]", "task_table.tickets.labels: expected the names of at least two classes, got [billing]"),
        ("[billing, other]", "[billing, billing]", "task_table.tickets.labels: expected each once"),
        ("[billing, other]", "[yes, 1]", "task_table.tickets.labels[1]: expected str, got 1"),
        ("[accuracy]", "[pearson]", "task_table.tickets.metrics: expected metrics of kind single (accuracy, f1, matthews)"),
        ("metrics: [accuracy], ", "", "task_table.tickets.metrics: expected some of accuracy, f1, matthews, got none"),
        ("kind: single", "kind: pair", "task_table.tickets.columns: expected 2 of a task of kind pair, got [text]"),
        ("kind: single", "kind: tagging", "task_table.tickets.labels: expected IOB2 tags"),
        ("kind: single", "group_by: title, kind: single", "task_table.tickets.group_by: expected one of the columns text, got"),
        ("kind: single", "where: {a: x, b: y}, kind: single", "task_table.tickets.where: expected one column and its value"),
        ("kind: single", "labels_per_class: 0, kind: single", "task_table.tickets.labels_per_class: expected a positive number"),
        ("kind: single", "max_malformed: -1, kind: single", "task_table.tickets.max_malformed: expected 0 or more, got -1"),
        ("kind: single", "label_range: [0, 1], kind: single", "task_table.tickets.label_range: expected none"),
        ("kind: single", "name: tickets, kind: single", "task_table.tickets.name: unknown key"),
        ("kind: single", "colour: red, kind: single", "task_table.tickets: unknown key `colour`"),
        ("kind: single, ", "", "task_table.tickets: missing key `kind`"),
        ("[billing, other], metrics: [accuracy]", "[a, b, c], metrics: [f1]", "tickets.metrics: expected f1 of a task with two"),
        ("kind: single", "test: [amazon_test, yelp_test], kind: single", "tickets.test: expected stems of files that differ"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_row_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TABLE
    with pytest.raises(FilbertError) as error:
        tasks.find("tickets", params(tmp_path, TABLE.replace(old, new)))
    assert said in str(error.value)
    assert "params.yaml" in str(error.value)


def test_a_regression_needs_a_range_and_a_name_must_fit_into_paths(tmp_path: Path) -> None:
    with pytest.raises(
        FilbertError, match=r"prices.label_range: expected \[lowest, highest\] of a regression label, got \[\]"
    ):
        tasks.find("prices", params(tmp_path, TABLE.replace("label_range: [0, 9.5], ", "")))
    with pytest.raises(FilbertError, match="expected a name of letters, digits and underscores"):
        tasks.find("../x", params(tmp_path, TABLE.replace("prices:", "../x:")))


def test_what_is_missing_is_named_with_the_place_to_add_it(tmp_path: Path) -> None:
    file = params(tmp_path)
    with pytest.raises(
        FilbertError, match=r"no task `snli` in .*; known are reviews, tickets, prices. .*make task NAME=snli"
    ):
        tasks.find("snli", file)
    with pytest.raises(FilbertError, match="expected a section `task_table`"):
        tasks.names(params(tmp_path, "tasks: [a]"))
    file = params(tmp_path, TABLE.replace("source: here, transfer: [reviews]", "source: there, transfer: [prices]"))
    with pytest.raises(FilbertError, match=r"tickets.source: no `there` in `sources`, which has here"):
        tasks.source_of(tasks.find("tickets", file), file)
    with pytest.raises(FilbertError, match=r"tickets.transfer: expected tasks of kind text, got prices \(regression\)"):
        tasks.transfer_texts(tasks.find("tickets", file), file)
