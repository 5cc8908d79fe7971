"""Metrics against the definitions written out, and the table of tasks against GLUE."""

import numpy as np
import pytest
from tiny import find_task

from filbert.data import tasks
from filbert.evaluation import metrics

LABEL, PREDICTED = np.array([1, 1, 1, 0, 0, 1, 0, 1]), np.array([1, 0, 1, 0, 1, 1, 0, 0])
TP, TN, FP, FN = 3, 2, 1, 2


def test_classification_metrics_by_their_definitions() -> None:
    assert metrics.METRICS["accuracy"](LABEL, PREDICTED) == (TP + TN) / 8
    assert metrics.METRICS["f1"](LABEL, PREDICTED) == pytest.approx(2 * TP / (2 * TP + FP + FN))
    root = ((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN)) ** 0.5
    assert metrics.METRICS["matthews"](LABEL, PREDICTED) == pytest.approx((TP * TN - FP * FN) / root)


def test_correlations_by_their_definitions() -> None:
    x, y = np.array([0.0, 1.5, 5.0, 2.0]), np.array([0.1, 3.0, 4.0, 2.5])
    dx, dy = x - x.mean(), y - y.mean()
    assert metrics.METRICS["pearson"](x, y) == pytest.approx((dx * dy).sum() / ((dx**2).sum() * (dy**2).sum()) ** 0.5)
    assert metrics.METRICS["spearman"](x, y) == pytest.approx(1 - 6 * 2 / (4 * 15))  # one swap of neighbours


@pytest.mark.parametrize("name", ["matthews", "pearson", "spearman", "f1"])
def test_a_constant_prediction_scores_nothing(name: str) -> None:
    assert metrics.METRICS[name](LABEL, np.zeros(8, dtype=int)) == 0.0


def test_scores_are_named_and_averaged() -> None:
    logits = np.eye(2)[PREDICTED]
    found = metrics.scores(find_task("mrpc"), logits, LABEL)
    assert list(found) == ["score", "accuracy", "f1"]
    assert found["score"] == pytest.approx((found["accuracy"] + found["f1"]) / 2)
    numbers = np.array([[0.0], [1.0], [2.0]])
    assert metrics.scores(find_task("stsb"), numbers, np.array([1.0, 2.0, 3.0]))["score"] == pytest.approx(1.0)


def test_the_table_is_whole() -> None:
    table = [find_task(name) for name in tasks.names()]
    glue = {task.name for task in table if task.source == "glue"}
    assert glue == {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
    assert {name for known in tasks.METRICS.values() for name in known} == {*metrics.METRICS, "entity_f1"}
