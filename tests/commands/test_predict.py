"""`predict` by hand: texts, stdin, files of every format, bad rows, resumption; no traceback for any input."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from export_files import MODELS, export_folder, saved
from filelock import FileLock
from tiny import ROOT, sentences

from commands.predict import predict
from filbert import FilbertError
from filbert.export import predict_file
from filbert.export.inference import Predictor, open_model

TEXTS = [text for text, _ in sentences(30)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    return export_folder(teacher, tmp_path_factory.mktemp("export") / "model")


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_texts_are_answered_a_line_each(model: Path, capsys: pytest.CaptureFixture) -> None:
    predict(model, ["the film was great", "dull"], every=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["the film was great", "dull"]
    assert all(abs(sum(line["probabilities"].values()) - 1) < 1e-5 for line in lines)


def test_bad_texts_are_named_and_the_rest_is_answered(model: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(typer.Exit) as left:
        predict(model, ["good", "", "bad"])
    assert left.value.exit_code == 3
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert "text 2: expected text in sentence, got an empty one" in said.err
    assert "1 of 3 rows could not be answered" in said.err


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("out", [".csv", ".jsonl", ".parquet"])
def test_a_file_is_answered_in_its_order(suffix: str, out: str, model: Path, tmp_path: Path) -> None:
    rows = [{"id": n, "sentence": text, "label": "mine"} for n, text in enumerate(TEXTS)]
    file, answers = tmp_path / f"in{suffix}", tmp_path / f"out{out}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        file.write_text("id,sentence,label\n" + "".join(f"{r['id']},{r['sentence']},mine\n" for r in rows))
    predict(model, file=file, out=answers, every=out == ".csv")
    found = {".parquet": lambda: pq.read_table(answers).to_pylist(), ".csv": lambda: read_csv(answers),
             ".jsonl": lambda: [json.loads(line) for line in answers.open()]}[out]()  # fmt: skip
    wanted = open_model(model).predict(TEXTS)
    assert [str(row["id"]) for row in found] == [str(n) for n in range(len(TEXTS))]
    assert [row["predicted_label"] for row in found] == [answer["label"] for answer in wanted]
    assert {row["label"] for row in found} == {"mine"}
    if out == ".csv":
        assert "probability.positive" in found[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file.name, answers.name])


def test_rows_with_other_keys_stay_under_their_header(model: Path, tmp_path: Path) -> None:
    rows = [
        {"id": 1, "sentence": "good", "note": "a"},
        {"note": "b", "sentence": "bad", "id": 2},
        {"id": 3, "sentence": "dull"},
    ]
    file, out = tmp_path / "in.jsonl", tmp_path / "out.csv"
    file.write_text("\n".join(map(json.dumps, rows)))
    predict(model, file=file, out=out)
    assert [(row["id"], row["sentence"], row["note"]) for row in read_csv(out)] == [
        ("1", "good", "a"),
        ("2", "bad", "b"),
        ("3", "dull", ""),
    ]
    file.write_text('{"sentence": "good", "label": "gold"}\n{"sentence": "bad"}')
    predict(model, file=file, out=out)
    assert [row["label"] for row in read_csv(out)] == ["gold", ""]
    assert all(row["predicted_label"] for row in read_csv(out))
    file.write_text("\n".join(map(json.dumps, rows[::-1])))
    with pytest.raises(
        FilbertError, match=r"in.jsonl, line 2: expected the columns of the first row \(id, sentence, .* got note"
    ):
        predict(model, file=file, out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.csv"]


def test_nothing_of_a_row_is_lost(model: Path, tmp_path: Path) -> None:
    """A key that the first row lacks, columns called as an answer's are, a lone surrogate, a number that JSON has no word for."""
    file, out = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    rows = [{"sentence": "good"}, {"sentence": "bad", "id": 7, "note": "kept"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    predict(model, file=file, out=out)
    assert [(row["id"], row["note"]) for row in pq.read_table(out).to_pylist()] == [(None, None), (7, "kept")]
    mine = {"sentence": "good", "label": "a", "predicted_label": "b", "probability.negative": "c", "probability": 9.0}
    file.write_text(json.dumps(mine))
    for out in (tmp_path / "out.jsonl", tmp_path / "out.csv"):
        predict(model, file=file, out=out, every=True)
        found = json.loads(out.read_text()) if out.suffix == ".jsonl" else read_csv(out)[0]
        assert {name: str(found[name]) for name in mine} == {name: str(value) for name, value in mine.items()}
        assert found["predicted_predicted_label"] in ("negative", "positive")
    assert float(found["predicted_probability.negative"]) < 1
    pq.write_table(pa.table({"sentence": ["good"], "number": [float("nan")]}), tmp_path / "in.parquet")
    file.write_text(r'{"sentence": "good", "user": "\ud83d"}')
    for name, key, wanted in ((file, "user", "\ud83d"), (tmp_path / "in.parquet", "number", None)):
        predict(model, file=name, out=tmp_path / "out.jsonl")
        assert json.loads((tmp_path / "out.jsonl").read_text(), parse_constant=pytest.fail)[key] == wanted
    with pytest.raises(FilbertError, match=r"take an output that ends in .jsonl"):
        predict(model, file=file, out=tmp_path / "out.parquet")


def test_two_processes_do_not_write_one_output(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("good\n")
    with (
        FileLock(tmp_path / ".out.jsonl.lock"),
        pytest.raises(FilbertError, match=r"out.jsonl: another process is writing it"),
    ):
        predict(model, file=tmp_path / "in.txt", out=tmp_path / "out.jsonl")
    predict(model, file=tmp_path / "in.txt", out=tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.jsonl"]


def test_bad_rows_of_a_file_are_named_with_their_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "in.csv").write_text("id,sentence\n1,good\n2,\n3,bad,4\n5,great\n")
    with pytest.raises(typer.Exit) as left:
        predict(model, file=tmp_path / "in.csv", out=tmp_path / "out.csv")
    assert left.value.exit_code == 3
    said = capsys.readouterr().err
    assert "in.csv, line 3: expected text in sentence, got an empty one" in said
    assert "in.csv, line 4: expected 2 columns (id, sentence), got 3" in said
    assert [row["id"] for row in read_csv(tmp_path / "out.csv")] == ["1", "5"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("in.csv", b"", "expected rows, found none"),
        ("in.csv", b"text\ngood\n", "expected the column sentence, found text; name the columns with --columns"),
        ("in.csv", "sentence\ngood\ncaf\xe9\n".encode("latin-1"), "line 3: expected UTF-8, got the byte 0xe9"),
        ("in.csv", b'sentence\n"good\n', "expected quoted fields as in CSV"),
        ("in.parquet", b"rubbish", "expected a parquet table"),
        ("in.jsonl", b"", "expected rows, found none"),
        ("in.doc", b"a", "expected a file that ends in .csv"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    name: str, content: bytes, said: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FilbertError, match=said):
        predict(model, file=tmp_path / name, out=tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_arguments_that_do_not_fit_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("sentence\ngood\n")
    for more, said in (
        ({"file": tmp_path / "in.csv"}, "expected --file with --out"),
        ({"file": tmp_path / "in.csv", "out": tmp_path / "in.csv"}, "expected another file than the input"),
        ({"file": tmp_path / "in.csv", "out": tmp_path / "a.xls"}, "expected an output that ends in"),
        ({"file": tmp_path / "no.csv", "out": tmp_path / "a.csv"}, "expected a file of texts, found none"),
        ({"file": tmp_path / "in.csv", "out": tmp_path / "a.csv", "columns": "a,b"}, "--columns: expected 1"),
    ):
        with pytest.raises(FilbertError, match=said):
            predict(model, **more)


def test_a_long_text_is_cut_and_said_so(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "in.txt").write_text("good " * 20_000 + "\nbad\n")
    predict(model, file=tmp_path / "in.txt", out=tmp_path / "out.csv")
    assert "1 texts were longer than 16 tokens and were cut" in capsys.readouterr().err


def test_after_a_kill_it_goes_on_where_it_was(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict_file, "WINDOW", 7)
    (tmp_path / "in.csv").write_text("sentence\n" + "\n".join(TEXTS) + "\n")
    predict(model, file=tmp_path / "in.csv", out=tmp_path / "whole.csv")
    answer, calls = Predictor.predict, []

    def dies(self: Predictor, texts: list, *more: object) -> list:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, texts, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Predictor, "predict", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(model, file=tmp_path / "in.csv", out=tmp_path / "out.csv")
    with (tmp_path / ".out.csv.part").open("a") as part:
        part.write("half a li")  # as a kill within a write leaves it
    predict(model, file=tmp_path / "in.csv", out=tmp_path / "out.csv")
    assert calls == [7, 7, 7, 7, 7, 2]
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_another_input_is_begun_anew(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("sentence\ngood\n")
    (tmp_path / ".out.csv.part").write_text("rubbish")
    (tmp_path / ".out.csv.json").write_text("{")
    predict(model, file=tmp_path / "in.csv", out=tmp_path / "out.csv")
    assert len(read_csv(tmp_path / "out.csv")) == 1


def test_pairs_are_joined_by_a_tab_and_tags_are_printed(
    tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture
) -> None:
    predict(export_folder(teacher, tmp_path / "pairs", kind="pair", columns=("a", "b")), ["the film\tgood"])
    assert "label" in capsys.readouterr().out
    with pytest.raises(typer.Exit):
        predict(tmp_path / "pairs", ["the film"])
    labels = tuple("O B-PER I-PER B-ORG I-ORG B-LOC I-LOC".split())
    student = saved(MODELS["bert, tags"](), tmp_path / "model")
    predict(export_folder(student, tmp_path / "tags", kind="tagging", labels=labels), ["the dogs runs"])
    assert len(json.loads(capsys.readouterr().out)["tags"]) == 3


def test_a_pair_in_a_text_file_has_a_tab_between_its_texts(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pairs = export_folder(teacher, tmp_path / "pairs", kind="pair", columns=("one", "two"))
    (tmp_path / "in.txt").write_text("good\tbad\nalone\n")
    with pytest.raises(typer.Exit):
        predict(pairs, file=tmp_path / "in.txt", out=tmp_path / "out.jsonl")
    assert [json.loads(line)["two"] for line in (tmp_path / "out.jsonl").open()] == ["bad"]
    assert "in.txt, line 2: expected 2 texts, a tab between them" in capsys.readouterr().err


def test_from_the_shell_by_stdin_with_rubbish_in_it(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "commands.predict", str(model)], input=b"good\n\xff\xfe\n\nbad\n", cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert b"Traceback" not in done.stderr
    assert b"line 2: expected valid Unicode in sentence" in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "commands.predict", "nowhere", "a"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "expected the config.json of a trained or exported model, found no folder" in done.stderr
