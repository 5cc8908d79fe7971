"""Intervals of resampled differences, the verdicts that they allow, and Holm's correction for many of them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from filbert import FilbertError
from filbert.data.tasks import METRICS
from filbert.runtime.config import NonNegative, Range

Verdict = Literal["better", "equal", "worse", "not told apart"]


@dataclass(frozen=True)
class ReportConfig:
    """What students are compared with, and the confidence of a verdict."""

    baseline: str  # the student that all others are compared with
    against: dict[str, tuple[str, ...]]  # by student, what it is compared with instead
    same_size: NonNegative  # largest relative difference of the parameters of two students that are compared
    same_steps: NonNegative  # likewise of their steps
    margin: NonNegative  # points within which two means count as equal
    margins: dict[str, NonNegative]  # likewise, of metrics that have another
    confidence: Annotated[float, Range(0.5, 0.9999)]  # of the interval of the difference

    def __post_init__(self) -> None:
        known = sorted({name for names in METRICS.values() for name in names})
        if unknown := [name for name in self.margins if name not in known]:
            raise FilbertError(f"margins: expected names of metrics ({', '.join(known)}), got {', '.join(unknown)}")

    def margin_of(self, metrics: Sequence[str]) -> float:
        """The margin of a score that is the mean of these metrics."""
        return statistics.mean(self.margins.get(name, self.margin) for name in metrics)


def interval(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentile interval of resampled values [DRAWS]."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def verdict(draws: np.ndarray, margin: float, confidence: float) -> Verdict:
    """What the interval of a resampled difference says: equal if it lies within ± margin, else better or worse if it excludes 0,
    else not told apart."""
    low, high = interval(draws, confidence)
    if -margin <= low and high <= margin:
        return "equal"
    if low > 0 or high < 0:
        return "better" if low > 0 else "worse"
    return "not told apart"


def p_value(draws: np.ndarray, margin: float) -> float:
    """One minus the least confidence at which a verdict falls. The smaller p of two tests: that there is no difference, and that
    there is one of at least the margin; only one of them can be true, so that no correction is due."""
    none = min((draws <= 0).sum(), (draws >= 0).sum())
    large = max((draws < -margin).sum(), (draws > margin).sum())
    return min(1.0, 2 * (min(none, large) + 1) / (len(draws) + 1))


def holm(p_values: Sequence[float], confidence: float) -> list[float]:
    """The confidence of each of several intervals at which any of their verdicts is wrong as seldom as that of one (Holm 1979)."""
    error, failed, found = 0.0, False, dict[int, float]()
    for rank, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        error = error if failed else (1 - confidence) / (len(p_values) - rank)
        failed = failed or p_values[at] > error
        found[at] = 1 - error
    return [found[at] for at in range(len(p_values))]


def standard_deviation(values: list[float]) -> float:
    """The standard deviation over seeds; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_deviation(values: list[float], digits: int = 1) -> str:
    """Mean ± standard deviation, or the one value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
