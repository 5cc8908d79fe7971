"""Resampled scores against the metrics on rows that are really repeated; intervals against a known truth."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import find_task

from filbert.data.tasks import Task, TaskKind
from filbert.evaluation import bootstrap, metrics
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
