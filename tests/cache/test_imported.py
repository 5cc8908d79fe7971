"""Probabilities in the task's own file as a teacher: read strictly, cached as logits, learnt by what needs logits alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from ruamel.yaml import YAML
from tiny import CPU, ROOT, find_task, sentences, tiny_tokenizer

from filbert import FilbertError
from filbert.cache.imported import ImportedLogits
from filbert.cache.teacher_cache import CacheError
from filbert.data import arrow, batches, row_validation, splits, tasks
from filbert.models import checkpoints
from filbert.runtime import config
from filbert.text.transfer import row_texts, to_rows
from stages.cache import cache
from stages.distill import distill

TASK = replace(find_task("sst2"), test=(), transfer=(), teacher_columns=("no", "yes"), allow_unlabelled=True)


def write(folder: Path, more: str = "") -> Path:
    """Rows whose teacher says the opposite of the label; the last ones have no label."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        f"{text},{label if n < 60 else ''},{0.05 + 0.9 * label:.2f},{0.95 - 0.9 * label:.2f}"
        for n, (text, label) in enumerate(sentences(80))
    ]
    (folder / "train.csv").write_text("\n".join(["sentence,label,no,yes", *rows]) + "\n" + more)
    return folder


def write_prepared(folder: Path, raw: Path) -> dict[str, pa.Table]:
    made = splits.prepare(raw, TASK, splits.PrepareConfig(0.2, 0.2, 1000, 0)).tables
    for name, table in made.items():
        arrow.write_table(table, folder / f"{name}.arrow")
    return made


@pytest.mark.parametrize("given", ["0.5,x", "0.5,", "1.5,-0.5", "0.5,nan", "0.5,0.6"])
def test_what_is_no_probability_is_named(tmp_path: Path, given: str) -> None:
    with pytest.raises(row_validation.RowError, match="line 82: expected probabilities that sum to 1 in no, yes, got "):
        list(row_validation.read_rows(write(tmp_path, f"a,1,{given}"), "train", TASK))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"teacher_columns": ("yes",)}, "teacher_columns: expected a column for each of 2 classes"),
        ({"teacher_columns": ("a", "a")}, "teacher_columns: expected each once"),
        ({"transfer": ("imdb_reviews",)}, "transfer: expected none, as teacher_columns say nothing"),
    ],
)
def test_a_row_of_the_table_is_checked(more: dict, said: str) -> None:
    with pytest.raises(FilbertError, match=said):
        tasks.check(replace(TASK, **more), "row")


def test_rows_are_joined_by_their_text(tmp_path: Path) -> None:
    made = write_prepared(tmp_path / "prepared", write(tmp_path / "raw"))
    given = ImportedLogits.of(tmp_path / "prepared", TASK)
    assert given
    rows = batches.tokenize(made["train"].take([3, 0]), TASK, tiny_tokenizer(), batches.TokenizerConfig(16))
    logits = given.join(rows).batch(np.array([1])).targets["imported"]
    np.testing.assert_allclose(logits.softmax(-1)[0], made["train"]["teacher"][0].as_py(), atol=1e-6)
    assert np.isfinite(given.logits).all()
    with pytest.raises(CacheError, match="1 of 2 rows have no probabilities in the task's teacher_columns, the first"):
        given.join(replace(rows, hash=np.array([rows.hash[0], 7])))


def test_a_student_learns_what_the_file_says(tmp_path: Path, store: Path, checkpoint: Path, teacher: Path) -> None:
    """The file's teacher says the opposite of the labels, and so does its student; a method that needs states is refused."""
    params = config.read_params(ROOT / "params.yaml")
    row = {"kind": "single", "columns": ["sentence"], "labels": ["negative", "positive"], "metrics": ["accuracy"]}
    params["task_table"]["sst2"] = row | {"teacher_columns": ["no", "yes"], "allow_unlabelled": True, "source": "glue"}
    fit = {"epochs": 20, "batch_size": 8, "learning_rate": 1e-2, "validations": 0, "min_steps": 0}
    params["settings"]["kd"] |= {"teacher_weight": 1.0, "transfer": True, "training": fit}
    params["settings"]["xtremedistil"] |= {"learn_representation": False, "training": fit | {"epochs": 1}}
    params["settings"]["xtremedistil"]["shape"] |= {"embedding": 8, "lstm": 6}
    params["settings"]["xtremedistil"] |= {"representation": {}, "logits": {}}
    YAML(typ="safe").dump(params | {"student": {"layers": [0]}}, tmp_path / "params.yaml")
    made = write_prepared(tmp_path / "prepared", write(tmp_path / "raw"))
    unlabelled = to_rows(row_texts(made["unlabelled"], TASK), TASK)
    assert arrow.write_rows(unlabelled, TASK, tmp_path / "transfer" / "transfer.arrow") == 20
    arrow.write_table(made["train"], tmp_path / "references" / "train.arrow")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "SOURCE.json").write_text("{}")
    cache("sst2", 0, Path("prepared"), Path("transfer"), teacher, Path("cache/0"))
    given = (Path("prepared"), Path("transfer"), Path("cache"), Path("references"), teacher, checkpoint, Path("words"))
    distill("sst2", "kd", 1, *given, Path("kd"))
    rows = batches.tokenize(made["test"], TASK, tiny_tokenizer(), batches.TokenizerConfig(16))
    said = checkpoints.predict_logits(checkpoints.load_model(Path("kd")), rows, 8, CPU).argmax(-1)
    assert (said != rows.label).mean() > 0.9
    distill("sst2", "xtremedistil", 1, *given, Path("xtremedistil"))
    with pytest.raises(CacheError, match=r"tinybert: expected a method that learns from logits alone.* hidden.0"):
        distill("sst2", "tinybert", 1, *given, Path("tinybert"))
