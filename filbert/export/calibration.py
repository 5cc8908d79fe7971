"""Probabilities that mean what they say: a temperature fitted on validation rows, and the threshold for a wanted precision.

Temperature scaling is Guo et al. 2017 (arXiv 1706.04599); the expected calibration error is theirs too, over 15 equal bins.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 15


@dataclass(frozen=True)
class Calibration:
    """What was fitted on validation rows."""

    temperature: float
    error_before: float  # expected calibration error
    error_after: float
    thresholds: dict[
        str, dict[str, float]
    ]  # by wanted precision: the least probability, and the share of rows above it


def calibrate(logits: np.ndarray, label: np.ndarray, precisions: tuple[float, ...]) -> Calibration:
    """Fit the temperature to logits [N, C] and classes [N], and find the threshold for each precision that can be had."""
    temperature = fit_temperature(logits, label)
    before, after = (np.exp(log_softmax(logits / t, axis=-1)) for t in (1.0, temperature))
    thresholds = {f"{wanted:g}": found for wanted in precisions if (found := find_threshold(after, label, wanted))}
    return Calibration(temperature, calibration_error(before, label), calibration_error(after, label), thresholds)


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float:
    """The temperature at which the labels are likeliest, between 1/20 and 20."""

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=-1)[np.arange(len(label)), label].mean())

    found: Any = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def calibration_error(shares: np.ndarray, label: np.ndarray) -> float:
    """The mean distance of confidence to accuracy over bins of confidence, from probabilities [N, C]."""
    sure, right = shares.max(-1), shares.argmax(-1) == label
    of = np.minimum((sure * BINS).astype(int), BINS - 1)
    return float(sum(abs(sure[of == b].sum() - right[of == b].sum()) for b in range(BINS)) / len(label))


def find_threshold(shares: np.ndarray, label: np.ndarray, precision: float) -> dict[str, float] | None:
    """The least probability from which on answers are right in at least `precision` of the rows; None where nowhere."""
    sure, right = shares.max(-1), shares.argmax(-1) == label
    order = np.argsort(-sure, kind="stable")
    accuracy = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last = np.append(np.diff(sure[order]) != 0, True)  # rows of one probability go together
    good = np.flatnonzero((accuracy >= precision) & last)
    if not len(good):
        return None
    return {"threshold": float(sure[order][good[-1]]), "coverage": float((good[-1] + 1) / len(order))}
