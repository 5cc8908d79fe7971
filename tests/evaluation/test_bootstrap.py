"""Resampled scores against the metrics on rows that are really repeated; intervals against a known truth."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from result_files import write_rows
from tiny import find_task

from filbert import FilbertError
from filbert.data.tasks import Task, TaskKind
from filbert.evaluation import bootstrap, metrics, statistics
from filbert.evaluation.predictions import Predictions, read_predictions, write_predictions


def named(name: str) -> Task:
    several = {"kind": TaskKind.MULTILABEL, "labels": ("a", "b", "c"), "metrics": ("f1_micro", "f1_macro")}
    return replace(find_task("sst2"), **several) if name == "several labels" else find_task(name)


def made_up(name: str, rows: int, generator: np.random.Generator) -> tuple[np.ndarray, SimpleNamespace]:
    """Logits and rows of a task, a third wrong; in tagging of sentences of four words, the last beyond the maximum length."""
    task = named(name)
    logits = generator.normal(size=(rows, task.outputs)).astype(np.float32)
    if task.kind is TaskKind.REGRESSION:
        label = np.round(logits[:, 0] + generator.normal(size=rows), 1).astype(np.float32)  # with ties
    elif task.kind is TaskKind.MULTILABEL:
        label = ((logits > 0) ^ (generator.random(logits.shape) < 1 / 3)).astype(np.float32)
    else:
        label = np.where(generator.random(rows) < 1 / 3, generator.integers(task.outputs, size=rows), logits.argmax(-1))
    if task.kind is not TaskKind.TAGGING:
        return logits, Rows(label=label, idx=np.arange(rows, dtype=np.int32), tags=None)
    words, sentences = np.tile([-1, 0, 1, 2], rows), np.arange(rows + 1) * 4
    return generator.normal(size=(4 * rows, task.outputs)).astype(np.float32), Rows(
        label=generator.integers(task.outputs, size=4 * rows), idx=np.arange(rows, dtype=np.int32), tags=sentences, word=words,
        lengths=np.full(rows, 4))  # fmt: skip


class Rows(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.idx)


@pytest.mark.parametrize("name", ["sst2", "mrpc", "cola", "mnli", "stsb", "wikiann", "several labels"])
def test_resampled_scores_are_those_of_repeated_rows(name: str, tmp_path: Path) -> None:
    """Through the file, whose rows as they are have the score of evaluation."""
    task, generator = named(name), np.random.default_rng(0)
    logits, rows = made_up(name, 40, generator)
    write_predictions(tmp_path / "1.parquet", task, {"test": (logits, rows)})  # type: ignore[dict-item]
    read = read_predictions(tmp_path / "1.parquet", task)["test"]
    score, once = bootstrap.scorer(task, read), np.ones((1, 40))
    assert score(once) == pytest.approx([metrics.scores_on(task, logits, rows)["score"]], abs=1e-6)  # type: ignore[arg-type]
    drawn = generator.integers(40, size=40)
    again = score(np.bincount(drawn, minlength=40)[None].astype(float))
    assert again == pytest.approx([repeated(task, read, drawn)], abs=1e-6)
    assert again != score(once)


def repeated(task: object, read: Predictions, drawn: np.ndarray) -> float:
    """The score of these rows, repeated in memory."""
    at = np.concatenate([np.arange(*read.offsets[[row, row + 1]]) for row in drawn])
    ends = np.cumsum([0, *np.diff(read.offsets)[drawn]])
    rows = SimpleNamespace(label=read.label[at], tags=ends)
    if task.kind is not TaskKind.TAGGING:  # type: ignore[attr-defined]
        return metrics.scores(task, read.logits[at], rows.label)["score"]  # type: ignore[arg-type]
    return metrics.entity_f1(task, read.logits[at].argmax(-1), rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cola", "mrpc", "stsb"])
def test_a_constant_prediction_keeps_its_score(name: str) -> None:
    task, label = find_task(name), np.tile([0, 1], 10)
    score = bootstrap.scorer(task, Predictions(label, np.tile([2.0, 1.0], (20, 1))[:, : task.outputs], np.arange(21)))
    assert score(np.ones((1, 20))) == pytest.approx(
        [metrics.scores(task, np.tile([2.0, 1.0], (20, 1))[:, : task.outputs], label)["score"]]
    )


ROWS = 200
COUNTS = np.random.default_rng(4).multinomial(ROWS, np.full(ROWS, 1 / ROWS), 400).T / ROWS


def differences(generator: np.random.Generator, seeds: int, of_rows: float, of_seeds: float, both: float) -> np.ndarray:
    """Differences [S, 1 + DRAWS] in points, of a truth of 0, that deviate by row, by seed, and by both."""
    values = generator.normal(0, of_seeds, (seeds, 1)) + generator.normal(0, of_rows, ROWS)
    values += generator.normal(0, both, (seeds, ROWS))
    return np.concatenate([values.mean(1, keepdims=True), values @ COUNTS], axis=1)


@pytest.mark.parametrize("seeds", [1, 3, 10])
@pytest.mark.parametrize(
    ("of_rows", "of_seeds", "both"),
    [(10.0, 0.0, 10.0), (10.0, 1.0, 10.0), (1.0, 3.0, 1.0)],
    ids=["rows vary", "both vary", "seeds vary"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    seeds: int, of_rows: float, of_seeds: float, both: float
) -> None:
    """Of 400 made-up comparisons, whose share has a standard error of 1.1 %; of one seed the truth is that of these two models."""
    generator, held = np.random.default_rng(5), 0
    for _ in range(400):
        scores = differences(generator, seeds, of_rows, 0.0 if seeds == 1 else of_seeds, both)
        low, high = statistics.interval(bootstrap.resample_seeds(scores), 0.95)
        held += low <= 0 <= high
    assert held / 400 > 0.95 - 2.5 * 0.011


def test_seeds_that_vary_widen_the_interval_and_more_of_them_narrow_it() -> None:
    generator = np.random.default_rng(6)
    one, other = (
        np.mean([bootstrap.resample_seeds(differences(generator, 3, 5, of_seeds, 5)).std() for _ in range(30)])
        for of_seeds in (0.0, 3.0)
    )
    assert other > 1.5 * one
    ten = np.mean([bootstrap.resample_seeds(differences(generator, 10, 5, 3, 5)).std() for _ in range(30)])
    assert ten < 0.7 * other


def test_students_are_paired_by_row_and_a_run_repeats(tmp_path: Path) -> None:
    """Two that are wrong on nearly the same rows differ less from sample to sample than either from its own mean."""
    for number in (1, 2):
        write_rows(tmp_path / f"{number}.parquet", 0.8, number)
    one, other = (bootstrap.resample_rows(find_task("sst2"), [tmp_path / f"{number}.parquet"]) for number in (1, 2))
    assert one[0, 0] == other[0, 0] == pytest.approx(80.0)
    assert (one - other).std() < 0.6 * one.std()
    assert one[0, 1:].std() == pytest.approx(100 * (0.8 * 0.2 / 1000) ** 0.5, rel=0.05)
    again = bootstrap.resample_rows(find_task("sst2"), [tmp_path / "1.parquet"])
    assert (again == one).all()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.parquet").write_text("no rows")
    with pytest.raises(FilbertError, match=r"1\.parquet: expected rows in Parquet"):
        read_predictions(tmp_path / "1.parquet", find_task("sst2"))
