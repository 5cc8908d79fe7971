"""Raw tables: read strictly, deduplicated, split without leaks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import ROOT, find_task

import stages.prepare
from filbert.data import arrow, containment, row_validation, splits
from filbert.data.tasks import Task, TaskKind

CONFIG = splits.PrepareConfig(validation=0.2, test=0.2, max_rows=1000, seed=0)
SST2, COLA, STSB = find_task("sst2"), find_task("cola"), find_task("stsb")


def table(folder: Path, name: str, text: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def sst2(folder: Path, train: list[str], dev: list[str] | None = None) -> Path:
    table(folder, "train.tsv", "\n".join(["sentence\tlabel", *train]) + "\n")
    return table(folder, "dev.tsv", "\n".join(["sentence\tlabel", *(dev or ["held out\t1"])]) + "\n")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("only one column", "train.tsv, line 3: expected 2 columns (sentence, label), got 1"),
        ("one\ttwo\t1", "line 3: expected 2 columns (sentence, label), got 3"),
        ("fine\t2", "line 3: expected a label out of negative, positive or 0 to 1, got '2'"),
        ("fine\t", "line 3: expected a label out of negative, positive or 0 to 1, got ''"),
        ("fine\tmaybe", "line 3: expected a label"),
        ("  \t1", "line 3: expected text in column sentence, got '  '"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, bad: str, said: str) -> None:
    with pytest.raises(row_validation.RowError) as error:
        splits.prepare(sst2(tmp_path, ["good\t1", bad]), SST2, CONFIG)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("task", "row", "said"),
    [
        (
            SST2,
            '{"sentence": "good \\ud83d", "label": 1}',
            "train.jsonl, line 1: expected valid Unicode in column sentence",
        ),
        (find_task("wikiann"), '{"words": ["a", 3], "label": ["O", "O"]}', "expected words that are texts, got"),
    ],
    ids=["half an emoji", "a number"],
)
def test_json_that_is_no_text_is_named(tmp_path: Path, task: Task, row: str, said: str) -> None:
    table(tmp_path, "train.jsonl", row)
    with pytest.raises(row_validation.RowError, match=said):
        list(row_validation.read_rows(tmp_path, "train", task))


def test_a_column_beside_the_one_that_is_called_so_is_named(tmp_path: Path) -> None:
    table(tmp_path, "train.tsv", "sentence\tgold\tlabel\na film\t1\t0\n")
    with pytest.raises(row_validation.RowError, match=r"line 2: column label is there beside the one that .*rename"):
        list(row_validation.read_rows(tmp_path, "train", replace(SST2, rename={"gold": "label"})))
    swapped = replace(SST2, rename={"gold": "label", "label": "gold"})
    assert [row["label"] for row in row_validation.read_rows(tmp_path, "train", swapped)] == [1]


def test_a_key_that_comes_twice_spoils_its_own_line_alone(tmp_path: Path) -> None:
    rows = ['{"sentence": "good", "label": 1}', '{"sentence": "a", "sentence": "b", "label": 1}', "[" * 100_000]
    table(tmp_path, "train.jsonl", "\n".join([*rows, rows[0]]))
    assert len(list(row_validation.read_rows(tmp_path, "train", replace(SST2, max_malformed=2)))) == 2
    with pytest.raises(row_validation.RowError, match="line 2: expected each column once"):
        list(row_validation.read_rows(tmp_path, "train", SST2))


def test_words_that_are_no_list_are_named(tmp_path: Path) -> None:
    table(tmp_path, "train.jsonl", json.dumps({"words": 5, "label": 3}))
    with pytest.raises(row_validation.RowError, match="line 1: expected words and as many tags, got 5 and 3"):
        list(row_validation.read_rows(tmp_path, "train", find_task("wikiann")))


def test_other_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        row_validation.RowError, match=r"no table train \(.tsv, .csv, .jsonl, .parquet, .txt, .conll\) for task sst2"
    ):
        list(row_validation.read_rows(tmp_path, "train", SST2))
    table(tmp_path, "train.tsv", b"sentence\tlabel\ngood\t1\n" + b"\xff\xfe\t0\n")
    with pytest.raises(row_validation.RowError, match="expected UTF-8"):
        list(row_validation.read_rows(tmp_path, "train", SST2))
    table(tmp_path, "train.tsv", "text\tlabel\ngood\t1\n")
    with pytest.raises(row_validation.RowError, match="no column sentence for task sst2; found text, label"):
        list(row_validation.read_rows(tmp_path, "train", SST2))
    with pytest.raises(row_validation.RowError, match="no row is left for validation"):
        splits.prepare(sst2(tmp_path, ["good\t1"]), SST2, CONFIG)


def test_a_regression_label_has_a_range(tmp_path: Path) -> None:
    head = "\t".join(["sentence1", "sentence2", "score"])
    table(tmp_path, "train.tsv", f"{head}\na\tb\t5.1\n")
    with pytest.raises(row_validation.RowError, match=r"line 2: expected a label between 0.0 and 5.0, got '5.1'"):
        list(row_validation.read_rows(tmp_path, "train", STSB))


def test_glue_quotes_are_plain_and_cola_has_no_header_nor_last_newline(tmp_path: Path) -> None:
    table(tmp_path, "train.tsv", 'gj04\t1\t\tHe said "go.\nks08\t0\t*\tIt " is.')
    read = list(row_validation.read_rows(tmp_path, "train", COLA))
    assert [(row["idx"], row["sentence"], row["label"]) for row in read] == [(0, 'He said "go.', 1), (1, 'It " is.', 0)]


def test_the_same_rows_in_every_format(tmp_path: Path) -> None:
    wanted = [("null", 0), ('a "quoted", text', 1), ("two\nlines", 1)]
    table(tmp_path / "csv", "train.csv", 'sentence,label\nnull,0\n"a ""quoted"", text",1\n"two\nlines",1\n')
    lines = [json.dumps({"sentence": text, "label": label}) for text, label in wanted]
    table(tmp_path / "jsonl", "train.jsonl", "\n".join(lines))
    (tmp_path / "parquet").mkdir()
    columns = {"sentence": [text for text, _ in wanted], "label": [label for _, label in wanted]}
    pq.write_table(pa.table(columns), tmp_path / "parquet" / "train.parquet")
    for kind in ("csv", "jsonl", "parquet"):
        read = list(row_validation.read_rows(tmp_path / kind, "train", SST2))
        assert [(row["sentence"], row["label"]) for row in read] == wanted, kind


def test_duplicates_conflicts_and_leaks_go_and_are_counted(tmp_path: Path) -> None:
    train = [f"row {i}\t{i % 2}" for i in range(10)]
    train += ["Row  3\t1", "twice\t0", "TWICE\t1", "held out\t1"]  # a duplicate, a conflict, a leak
    prepared = splits.prepare(sst2(tmp_path, train, ["Held OUT\t1", "other\t0", "other\t0"]), SST2, CONFIG)
    assert prepared.counts == {"duplicate": 1, "conflicting": 2, "leaking": 1, "train": 8, "validation": 2, "test": 3}
    texts = {
        name: {row_validation.normalize_text(t) for t in split["sentence"].to_pylist()}
        for name, split in prepared.tables.items()
    }
    assert not texts["train"] & texts["validation"]
    assert not (texts["train"] | texts["validation"]) & texts["test"]


def test_a_swapped_pair_is_the_same_row_where_the_task_is_symmetric(tmp_path: Path) -> None:
    lines = [f"{i}\tnews\tf\t2012\t{i}\tn\tn\ta {i}\tb {i}\t1.0" for i in range(20)]
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"
    table(tmp_path, "train.tsv", "\n".join([head, *lines]))
    table(tmp_path, "dev.tsv", "\n".join([head, "0\tnews\tf\t2012\t0\tn\tn\tB 7\ta 7\t2.0"]))
    prepared = splits.prepare(tmp_path, STSB, CONFIG)
    assert prepared.counts["leaking"] == 1
    assert "a 7" not in prepared.tables["train"]["sentence1"].to_pylist()


def test_the_known_flaws_of_qqp_are_dropped_and_counted_up_to_a_bound(tmp_path: Path) -> None:
    qqp, head = find_task("qqp"), "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    lines = [f"{i}\t1\t2\ta {i}\tb {i}\t{i % 2}" for i in range(30)]
    flawed = ["31\t1\t2\tno second question\t\t0", "a broken\tline"]
    table(tmp_path, "dev.tsv", f"{head}\n0\t1\t2\tc\td\t1\n")
    table(tmp_path, "train.tsv", "\n".join([head, *lines, *flawed]))
    assert splits.prepare(tmp_path, qqp, CONFIG).counts["flawed"] == 2
    table(tmp_path, "dev.tsv", f"{head}\n0\t1\t2\tc\td\t1\n{flawed[1]}\n")
    assert splits.prepare(tmp_path, qqp, CONFIG).counts["flawed"] == 3
    table(tmp_path, "dev.tsv", f"{head}\n0\t1\t2\tc\td\t1\n")
    table(tmp_path, "train.tsv", "\n".join([head, *lines, *flawed * 11]))
    with pytest.raises(row_validation.RowError, match="expected text in column question2, got ''"):
        splits.prepare(tmp_path, qqp, CONFIG)


def test_a_byte_order_mark_and_windows_lines_do_no_harm(tmp_path: Path) -> None:
    table(tmp_path, "train.tsv", "\ufeffsentence\tlabel\r\ngood\t1\r\n")
    assert [(row["sentence"], row["label"]) for row in row_validation.read_rows(tmp_path, "train", SST2)] == [
        ("good", 1)
    ]
    table(tmp_path, "train.tsv", "sentence\tlabel\ngood\t²\n")
    with pytest.raises(row_validation.RowError, match="expected a label out of"):
        list(row_validation.read_rows(tmp_path, "train", SST2))


def test_the_split_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    train = [f"row {i}\t{i % 2}" for i in range(50)]
    one = splits.prepare(sst2(tmp_path, train), SST2, CONFIG).tables["validation"]["sentence"].to_pylist()
    two = splits.prepare(sst2(tmp_path, train[::-1]), SST2, CONFIG).tables["validation"]["sentence"].to_pylist()
    assert sorted(one) == sorted(two)
    assert len(one) == 10


def lies_inside(one: str, other: str) -> bool:
    return f" {one} " in f" {other} "


def test_phrases_stay_with_their_sentence(tmp_path: Path) -> None:
    """As in SST-2: no validation row lies inside a training row, nor a longer training row inside a validation row."""
    draw = np.random.default_rng(0)
    sentences = [" ".join(f"w{n}" for n in draw.integers(0, 300, 12)) for _ in range(60)]
    phrases = [" ".join(s.split()[a : a + n]) for s in sentences for a, n in ((0, 6), (3, 7), (5, 5), (2, 1), (8, 4))]
    rows = list(dict.fromkeys([*phrases, *sentences, "w1", "w2 w3"]))
    split = splits.prepare(sst2(tmp_path, [f"{text}\t{i % 2}" for i, text in enumerate(rows)]), SST2, CONFIG).tables
    train, validation = (split[name]["sentence"].to_pylist() for name in ("train", "validation"))
    assert len(validation) >= 0.2 * len(rows)
    assert not [(one, other) for one in validation for other in train if lies_inside(one, other)]
    assert not [t for t in train if len(t.split()) >= 4 and any(lies_inside(t, v) for v in validation)]


def test_a_sentence_that_half_of_the_texts_end_in_does_not_make_a_slice_of_half_of_them(tmp_path: Path) -> None:
    draw, ending = np.random.default_rng(0), "thanks for your help"
    texts = [" ".join(f"w{n}" for n in draw.integers(0, 5000, 12)) for _ in range(400)]
    rows = [ending, *(f"{text} {ending}" if at % 2 else text for at, text in enumerate(texts))]
    lines = [f"{text}\t{at % 2}" for at, text in enumerate(rows)]
    for seed in range(5):
        counts = splits.prepare(sst2(tmp_path, lines), SST2, replace(CONFIG, seed=seed)).counts
        assert counts["validation"] == 80
    with pytest.raises(
        row_validation.RowError, match=r"no row is left for validation .* texts that lie in most others"
    ):
        splits.prepare(sst2(tmp_path, [lines[0], *(f"{ending} {line}" for line in lines)]), SST2, CONFIG)


@pytest.mark.parametrize("most", [1, 10_000_000])
def test_containment_is_that_of_words(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, "MOST_PAIRS", most)
    draw = np.random.default_rng(1)
    texts = [" ".join(f"w{n}" for n in draw.integers(0, 3, draw.integers(0, 40))) for _ in range(80)]
    texts += [text[1:] for text in texts[:20]]  # part of a word is none
    found = {pair for inner, outer in containment.WordRuns(texts).containments()
             for pair in zip(inner.tolist(), outer.tolist(), strict=True)}  # fmt: skip
    n = range(len(texts))
    assert found == {(i, j) for i in n for j in n if i != j and texts[i] and lies_inside(texts[i], texts[j])}


def test_rows_that_share_a_passage_stay_together_and_unlabelled_ones_apart(tmp_path: Path) -> None:
    task = Task(name="t", kind=TaskKind.PAIR, columns=("question", "passage"), labels=("False", "True"), source="d",
                train="combined", group_by="passage", allow_unlabelled=True)  # fmt: skip
    made = [{"question": f"q{i}", "passage": f"p{i // 3}", "label": bool(i % 2)} for i in range(60)]
    made += [{"question": f"u{i}", "passage": "pu", "label": None} for i in range(5)]
    table(tmp_path, "combined.jsonl", "\n".join(map(json.dumps, made)))
    tables = splits.prepare(tmp_path, task, CONFIG).tables
    passages = {name: set(split["passage"].to_pylist()) for name, split in tables.items()}
    assert not passages["train"] & passages["validation"]
    assert not passages["train"] & passages["test"]
    assert not passages["validation"] & passages["test"]
    assert len(tables["unlabelled"]) == 5
    assert tables["unlabelled"]["label"].null_count == 5
    table(tmp_path, "exam.jsonl", "\n".join(map(json.dumps, [made[0], made[-1]])))
    with pytest.raises(
        row_validation.RowError, match=r"exam: expected a label for each test row, got none for 1 of 2 rows"
    ):
        splits.prepare(tmp_path, replace(task, test=("exam",)), CONFIG)


def test_labels_are_kept_of_few_rows_and_forgotten_of_the_others(tmp_path: Path) -> None:
    lines = [f"row {i}\t{i % 2}" for i in range(60)]
    task = replace(SST2, labels_per_class=10)
    found = splits.prepare(sst2(tmp_path, [*lines, "Held  OUT\t1"]), task, CONFIG)
    labelled = pa.concat_tables([found.tables["train"], found.tables["validation"]])
    assert sorted(labelled["label"].to_pylist()) == [0] * 10 + [1] * 10  # validation rows are among them
    assert len(found.tables["unlabelled"]) == found.counts["unlabelled"] == 40
    assert found.tables["unlabelled"]["label"].null_count == 40
    texts = [set(table["sentence"].to_pylist()) for table in (labelled, found.tables["unlabelled"])]
    assert not texts[0] & texts[1]
    assert "Held  OUT" not in texts[0] | texts[1]
    other = splits.prepare(sst2(tmp_path, lines[::-1]), task, CONFIG).tables
    again = pa.concat_tables([other["train"], other["validation"]])["sentence"].to_pylist()
    assert set(again) == texts[0]
    with pytest.raises(
        row_validation.RowError, match=r"expected at least 40 rows of each of 2 classes, got .*'negative': 30"
    ):
        splits.prepare(tmp_path, replace(SST2, labels_per_class=40), CONFIG)


def test_plain_text_is_a_text_a_line(tmp_path: Path) -> None:
    task = Task(name="t", kind=TaskKind.TEXT, columns=("sentence",), source="d", train="texts")
    long = "word " * 10_000
    table(tmp_path, "texts.txt", f"one text\n\n  another \n{long}\n")
    found = list(row_validation.read_rows(tmp_path, "texts", task))
    assert [(row["idx"], row["sentence"], row["label"]) for row in found] == [
        (0, "one text", None), (1, "another", None), (2, long.strip(), None)
    ]  # fmt: skip
    table(tmp_path, "texts.txt", b"fine\n\xff\xfe broken\n")
    with pytest.raises(row_validation.RowError, match=r"texts.txt, line 2: expected UTF-8"):
        list(row_validation.read_rows(tmp_path, "texts", task))


def test_arrow_files_come_back_as_they_went(tmp_path: Path) -> None:
    prepared = splits.prepare(sst2(tmp_path, [f"row {i}\t{i % 2}" for i in range(20)]), SST2, CONFIG)
    arrow.write_table(prepared.tables["train"], tmp_path / "train.arrow")
    assert arrow.read_table(tmp_path / "train.arrow").equals(prepared.tables["train"])
    assert row_validation.text_hash("a", "b") != row_validation.text_hash("ab", "")


def test_a_corpus_is_every_file_of_a_folder_without_its_empty_texts(tmp_path: Path) -> None:
    pq.write_table(pa.table({"title": ["a", "b", "c"], "text": ["one", "  ", None]}), tmp_path / "first.parquet")
    pq.write_table(pa.table({"text": ["two"]}), tmp_path / "second.parquet")
    (tmp_path / "lines.txt").write_text("three\n\n\u200b\nfour\n")
    corpus = find_task("corpus")
    assert [row["text"] for row in row_validation.read_rows(tmp_path, corpus.train, corpus)] == [
        "one",
        "two",
        "three",
        "four",
    ]
    pq.write_table(pa.table({"body": ["no column text"]}), tmp_path / "third.parquet")
    with pytest.raises(row_validation.RowError, match="no column text for task corpus; found body"):
        list(row_validation.read_rows(tmp_path, corpus.train, corpus))


@pytest.mark.parametrize("place", ["{project}/out", "{project}/../out", "../out", "out", "data/../out"])
def test_an_output_stays_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path, place: str
) -> None:
    """What a stage keeps against a kill, and forgets, is never the output itself."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    shutil.copy(ROOT / "params.yaml", project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(empty_store, tmp_path)}")
    raw = sst2(tmp_path / "raw", [f"text number {n}\t{n % 2}" for n in range(40)])
    out = Path(place.format(project=project))
    stages.prepare.prepare("sst2", raw, out, project / "rows.json")
    assert sorted(file.name for file in out.iterdir()) == [
        "HASHES.json",
        "test.arrow",
        "train.arrow",
        "validation.arrow",
    ]
    assert not list((project / ".scratch").rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("train.csv", 'sentence,label\n"good,1\nbad,0\n', "train.csv, from line 2 on: expected quoted fields as in CSV, got"),
        ("train.csv", 'sentence,label\n"good" film,1\n', "train.csv, from line 2 on: expected quoted fields as in CSV, got"),
        ("train.csv", "sentence,label,label\ngood,1,0\n", "train.csv, line 1: expected each column once, got 'label' several"),
        ("train.tsv", "sentence\tlabel\tlabel\ngood\t1\t0\n", "train.tsv, line 1: expected each column once, got 'label'"),
        ("train.jsonl", '{"sentence": "good", "label": 1, "label": 0}', "train.jsonl, line 1: expected each column once"),
        ("train.jsonl", '{"sentence": "good", "label": 1}\n{"sentence": "bad', "train.jsonl, line 2: expected a JSON object"),
        ("train.jsonl", "[1, 2]\n", "train.jsonl, line 1: expected a JSON object, got [1, 2]"),
        ("train.csv", 'sentence,label\n"two\nlines",1\n\ngood\n', "train.csv, line 5: expected 2 columns (sentence, label), got 1"),
        ("train.csv", "sentence,label\n\u200b\u2060,1\n", "line 2: expected text in column sentence, got '\\u200b\\u2060'"),
        ("train.csv", "sentence\ngood\n", "train.csv, line 2: no column label for task sst2; found sentence"),
        ("train.parquet", "no parquet", "train.parquet, after row 0: expected a parquet table, got"),
    ],
)  # fmt: skip
def test_a_bad_table_is_named_with_its_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    table(tmp_path, name, text)
    with pytest.raises(row_validation.RowError) as error:
        list(row_validation.read_rows(tmp_path, "train", SST2))
    assert said in str(error.value)


def test_a_table_in_two_formats_is_ambiguous(tmp_path: Path) -> None:
    sst2(tmp_path, ["good\t1"])
    table(tmp_path, "train.csv", "sentence,label\nbad,0\n")
    with pytest.raises(
        row_validation.RowError, match=r"expected one table train for task sst2, got train.tsv, train.csv; remove all"
    ):
        list(row_validation.read_rows(tmp_path, "train", SST2))


def test_rows_that_cannot_be_learnt_from_are_named(tmp_path: Path) -> None:
    with pytest.raises(row_validation.RowError, match=r"all 2 training rows of task sst2 equal test rows"):
        splits.prepare(sst2(tmp_path, ["good\t1", "bad\t0"], ["Good\t1", "BAD\t0"]), SST2, CONFIG)
    with pytest.raises(
        row_validation.RowError,
        match=r"expected training rows of several classes for task sst2, got positive in all 16",
    ):
        splits.prepare(sst2(tmp_path, [f"row {i}\t1" for i in range(20)]), SST2, CONFIG)
    table(tmp_path, "train.csv", "sentence,label,source\ngood,1,a\nbad,0,b\n")
    (tmp_path / "train.tsv").unlink()
    with pytest.raises(
        row_validation.RowError, match=r"no row of train has \{'source': 'c'\} \(task_table.sst2.where\); found a, b"
    ):
        list(row_validation.read_rows(tmp_path, "train", replace(SST2, where={"source": "c"})))
    with pytest.raises(
        row_validation.RowError, match=r"line 2: no column origin \(task_table.sst2.where\); found sentence, label"
    ):
        list(row_validation.read_rows(tmp_path, "train", replace(SST2, where={"origin": "c"})))


def test_labels_that_are_numbers_are_names_not_class_numbers(tmp_path: Path) -> None:
    stars = replace(SST2, labels=("1", "2", "3"))
    table(tmp_path, "train.jsonl", '{"sentence": "poor", "label": 1.0}\n{"sentence": "good", "label": "3"}\n')
    assert [row["label"] for row in row_validation.read_rows(tmp_path, "train", stars)] == [0, 2]
    table(tmp_path, "train.jsonl", '{"sentence": "poor", "label": 0}\n')
    with pytest.raises(row_validation.RowError, match="expected a label out of 1, 2, 3, got 0"):
        list(row_validation.read_rows(tmp_path, "train", stars))
