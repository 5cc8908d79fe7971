"""`make task`: what is guessed from files, and that params.yaml keeps everything else."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML
from tiny import ROOT, write_conll

from commands.add_task import task
from filbert import FilbertError
from filbert.data import sources, splits, tasks

TEXTS = [f"ticket number {n} is about a thing" for n in range(40)]


@pytest.fixture
def params(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path / "params.yaml"


def csv_of(file: Path, labels: list[str], head: str = "id,text,category") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{n},{text},{labels[n % len(labels)]}" for n, text in enumerate(TEXTS)]
    file.write_text("\n".join([head, *lines]) + "\n")
    return file


def added(name: str, data: Path, params: Path) -> tasks.Task:
    task(name, data, write=True, params=params)
    return tasks.find(name, params)


def test_a_csv_becomes_a_row_and_its_rows_can_be_prepared(
    tmp_path: Path, params: Path, capsys: pytest.CaptureFixture
) -> None:
    before, comments = params.read_text(), [line for line in params.read_text().splitlines() if "#" in line]
    found = added("tickets", csv_of(tmp_path / "in" / "tickets.csv", ["other", "billing", "technical"]), params)
    assert (found.kind, found.columns, found.labels) == ("single", ("text",), ("billing", "other", "technical"))
    assert (found.metrics, found.rename, found.train, found.test) == (
        ("accuracy",),
        {"category": "label"},
        "tickets",
        (),
    )
    said = capsys.readouterr().out
    assert "40 rows, kind single" in said
    assert "category: the label, other 14, billing 13, technical 13" in said
    assert "id: not used" in said
    assert "next: set `tasks: [tickets]`" in said
    after = params.read_text()
    assert after.startswith(before.rstrip("\n"))
    assert [line for line in after.splitlines() if "#" in line] == comments
    sources.fetch_task(tasks.source_of(found, params), found, tmp_path / "raw")
    counts = splits.prepare(tmp_path / "raw", found, splits.PrepareConfig(0.2, 0.2, 1000, 0)).counts
    assert counts["train"] + counts["validation"] + counts["test"] == 40


def test_nothing_is_written_unless_it_is_wanted(tmp_path: Path, params: Path, capsys: pytest.CaptureFixture) -> None:
    before = params.read_text()
    task("tickets", csv_of(tmp_path / "tickets.csv", ["a", "b"]), params=params)
    assert params.read_text() == before
    assert "  tickets: {kind: single" in capsys.readouterr().out


def test_a_folder_with_test_rows_two_texts_and_missing_labels(tmp_path: Path, params: Path) -> None:
    rows = [
        {"title": text, "body": f"{text} and more", "label": n % 2 if n % 5 else None} for n, text in enumerate(TEXTS)
    ]
    (tmp_path / "pairs").mkdir()
    for name, part in (("train", rows), ("test", [row | {"label": 1} for row in rows[:4]])):
        (tmp_path / "pairs" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)))
    found = added("pairs", tmp_path / "pairs", params)
    assert (found.kind, found.columns, found.labels, found.test) == ("pair", ("title", "body"), ("0", "1"), ("test",))
    assert found.allow_unlabelled
    assert found.rename == {}


def test_numbers_of_test_rows_count_and_tables_that_are_not_used_are_named(
    tmp_path: Path, params: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "scores").mkdir()
    for name, low in (("train", 1.5), ("test", 0.25), ("validation", 0)):
        rows = "".join(f"{text},{low + n / 10}\n" for n, text in enumerate(TEXTS))
        (tmp_path / "scores" / f"{name}.csv").write_text("text,score\n" + rows)
    found = added("scores", tmp_path / "scores", params)
    assert found.label_range == (0.25, pytest.approx(1.5 + (len(TEXTS) - 1) / 10))
    assert "not used: validation.csv" in capsys.readouterr().out


def test_numbers_are_a_regression_tags_are_tagging_and_texts_alone_are_text(tmp_path: Path, params: Path) -> None:
    numbers = {"review": TEXTS, "stars": [1 + n / 10 for n in range(40)]}
    pq.write_table(pa.table(numbers | {"score": numbers["stars"]}).drop_columns("stars"), tmp_path / "train.parquet")
    found = added("stars", tmp_path / "train.parquet", params)
    assert (found.kind, found.columns, found.label_range, found.metrics) == (
        "regression", ("review",), (1.0, 4.9), ("pearson", "spearman"))  # fmt: skip
    write_conll(tmp_path / "tags", "xx", 20, 0)
    lines = (tmp_path / "tags" / "xx" / "train.txt").read_text().replace("xx:", "")
    (tmp_path / "tags" / "train.conll").write_text(lines)
    found = added("names", tmp_path / "tags" / "train.conll", params)
    assert (found.kind, found.columns, found.labels) == (
        "tagging",
        ("sentence",),
        ("O", "B-LOC", "I-LOC", "B-PER", "I-PER"),
    )
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    found = added("mails", tmp_path / "lines.txt", params)
    assert (found.kind, found.columns, found.train) == ("text", ("text",), "lines")


def test_lists_of_labels_are_multilabel_and_so_are_labels_with_a_separator(
    tmp_path: Path, params: Path, capsys: pytest.CaptureFixture
) -> None:
    given = [["bug", "docs"], [], ["docs"], ["speed"]]
    lines = [json.dumps({"title": text, "marks": given[n % 4]}) for n, text in enumerate(TEXTS)]
    (tmp_path / "issues.jsonl").write_text("\n".join(lines))
    found = added("issues", tmp_path / "issues.jsonl", params)
    assert (found.kind, found.columns, found.labels) == ("multilabel", ("title",), ("bug", "docs", "speed"))
    assert (found.metrics, found.rename, found.allow_unlabelled) == (("f1_micro",), {"marks": "label"}, False)
    said = capsys.readouterr().out
    assert "40 rows, kind multilabel" in said
    assert "marks: the label, docs 20, bug 10, speed 10" in said
    sources.fetch_task(tasks.source_of(found, params), found, tmp_path / "raw")
    counts = splits.prepare(tmp_path / "raw", found, splits.PrepareConfig(0.2, 0.2, 1000, 0)).counts
    assert counts["train"] + counts["validation"] + counts["test"] == 40
    csv_of(tmp_path / "in" / "train.csv", ["bug|docs", "", "docs", "docs|speed"])
    csv_of(tmp_path / "in" / "test.csv", ["speed"])
    found = added("separated", tmp_path / "in", params)
    assert (found.kind, found.labels, found.test) == ("multilabel", ("bug", "docs", "speed"), ("test",))
    assert not found.allow_unlabelled
    csv_of(tmp_path / "in" / "test.csv", ["speed|size"])
    with pytest.raises(FilbertError, match=r"expected labels of train.csv .*, found size"):
        task("other", tmp_path / "in", params=params)
    (tmp_path / "issues.jsonl").write_text("\n".join(lines).replace("[]", "null"))
    assert added("some", tmp_path / "issues.jsonl", params).allow_unlabelled


@pytest.mark.parametrize(
    ("name", "file", "text", "said"),
    [
        ("sst2", "t.csv", "text,label\na b,0\n", "task_table.sst2 exists"),
        ("my-task", "t.csv", "text,label\na b,0\n", "expected letters, digits and underscores"),
        ("t", "t.csv", "a,b\n1,2\n3,4\n", "expected a column of texts, found a, b without one"),
        ("t", "t.csv", "text,label\na text here,1\nother text here,1\n", "expected 2 to 200 different labels in column label"),
        ("t", "t.csv", "text,label\n", "expected rows, found none"),
        ("t", "t.csv", 'text,label\n"a,1\n', "expected quoted fields as in CSV"),
        ("t", "t.xlsx", "?", "expected a file that ends in .tsv"),
        ("t", "t.jsonl", "{", "t.jsonl, line 1: expected a JSON object"),
        ("t", "none/t.csv", "", "expected a table or a folder with one"),
    ],
)  # fmt: skip
def test_what_cannot_become_a_task_is_named(
    tmp_path: Path, params: Path, name: str, file: str, text: str, said: str
) -> None:
    if "/" not in file:
        (tmp_path / file).write_text(text)
    before = params.read_text()
    with pytest.raises(FilbertError) as error:
        task(name, tmp_path / file, write=True, params=params)
    assert said in str(error.value)
    assert params.read_text() == before


def test_a_row_lands_in_the_table_wherever_the_table_is(tmp_path: Path, params: Path) -> None:
    rest = "\n\n# the rest\nsources:\n  here: {kind: folder, name: x}\n"
    params.write_text("task_table:\n  a: {kind: text, columns: [text], source: here}  # mine" + rest)
    added("tickets", csv_of(tmp_path / "tickets.csv", ["a", "b"]), params)
    assert list(YAML(typ="safe").load(params.read_text())["task_table"]) == ["a", "tickets"]
    assert params.read_text().endswith(rest)


def test_the_command_ends_with_one_line_of_error(tmp_path: Path, params: Path) -> None:
    command = [sys.executable, "-m", "commands.add_task", "t", str(tmp_path / "none"), "--params", str(params)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"task: {tmp_path / 'none'}: expected a table")
    assert "Traceback" not in done.stderr
