"""GLUE's metrics, by scikit-learn and scipy. All are fractions; higher is better."""

import warnings
from collections.abc import Callable

import numpy as np
from scipy.stats import ConstantInputWarning, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from filbert.tasks import Kind, Task


def _correlation(statistic: Callable[..., object]) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlation(label: np.ndarray, prediction: np.ndarray) -> float:
        with warnings.catch_warnings(category=ConstantInputWarning, action="ignore"):
            value = float(statistic(label, prediction)[0])  # type: ignore[index]
        return 0.0 if np.isnan(value) else value  # a constant prediction correlates with nothing

    return correlation


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy_score,
    "f1": lambda label, prediction: f1_score(label, prediction, zero_division=0.0),
    "matthews": matthews_corrcoef,
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}


def predictions(task: Task, logits: np.ndarray) -> np.ndarray:
    """Classes [N], or numbers [N] for regression, from logits [N, C]."""
    return logits[:, 0] if task.kind is Kind.REGRESSION else logits.argmax(-1)


def scores(task: Task, logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """The task's metrics by name, and their mean as `score` (as GLUE does where a task has two)."""
    predicted = predictions(task, logits)
    values = {name: float(METRICS[name](label, predicted)) for name in task.metrics}
    return {"score": float(np.mean(list(values.values()))), **values}
