"""Temperature, calibration error and thresholds against closed forms."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from filbert.export.calibration import calibrate, calibration_error, find_threshold, fit_temperature


def drawn(count: int = 4000, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(count, classes)) * 2
    label = (softmax(logits, -1).cumsum(-1) > draw.random((count, 1))).argmax(-1)
    return logits, label


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_logits_that_were_stretched_are_stretched_back(factor: float) -> None:
    logits, label = drawn()
    assert fit_temperature(factor * logits, label) == pytest.approx(factor, rel=0.06)
    found = calibrate(factor * logits, label, (0.9,))
    assert found.error_after < 0.03
    assert factor == 1 or found.error_before > 3 * found.error_after


def test_no_temperature_nearby_makes_labels_likelier() -> None:
    logits, label = drawn()

    def likelihood(temperature: float) -> float:
        return log_softmax(logits / temperature, -1)[np.arange(len(label)), label].mean()

    best = fit_temperature(logits, label)
    assert likelihood(best) >= max(likelihood(best * 1.02), likelihood(best / 1.02))


def test_the_calibration_error_is_the_distance_of_confidence_to_accuracy() -> None:
    shares = np.tile([[0.9, 0.1]], (10, 1))
    assert calibration_error(shares, np.zeros(10, int)) == pytest.approx(0.1)
    assert calibration_error(shares, np.array([0] * 9 + [1])) == pytest.approx(0)
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([1])) == 1


def test_a_threshold_keeps_as_many_rows_as_it_may() -> None:
    sure = np.array([0.99, 0.95, 0.9, 0.9, 0.8, 0.7])
    shares, label = np.stack([sure, 1 - sure], 1), np.array([0, 0, 0, 1, 0, 1])
    assert find_threshold(shares, label, 1.0) == {"threshold": 0.95, "coverage": pytest.approx(2 / 6)}
    assert find_threshold(shares, label, 0.8) == {"threshold": 0.8, "coverage": pytest.approx(5 / 6)}
    assert find_threshold(shares, 1 - label[:1].repeat(6), 0.5) is None
