"""Intervals of differences between scores over seeds, and the verdict they allow."""

import statistics
from dataclasses import dataclass

from scipy.stats import t as student_t

MIN_SEEDS = 3


@dataclass(frozen=True)
class ReportConfig:
    """Against what, and how sure."""

    baseline: str  # what a method must beat
    against: dict[str, tuple[str, ...]]  # by method, what it must beat instead
    same_size: float  # how far the parameters of two methods may differ and still be compared
    same_steps: float  # likewise their steps
    margin: float  # points within which two means count as equal
    confidence: float  # of the interval of the difference


def verdict(ours: list[float], theirs: list[float], config: ReportConfig) -> str:
    """BEATS, TIES, LOSES or INCONCLUSIVE: where the Welch interval of the difference of means lies.

    TIES if it lies within ± margin, else BEATS or LOSES if it excludes 0, else INCONCLUSIVE; always INCONCLUSIVE below
    three seeds on either side.
    """
    low, high = welch_interval(ours, theirs, config.confidence)
    if min(len(ours), len(theirs)) < MIN_SEEDS:
        return "INCONCLUSIVE"
    if -config.margin <= low and high <= config.margin:
        return "TIES"
    if low > 0 or high < 0:
        return "BEATS" if low > 0 else "LOSES"
    return "INCONCLUSIVE"


def welch_interval(ours: list[float], theirs: list[float], confidence: float) -> tuple[float, float]:
    """The Welch confidence interval of mean(ours) - mean(theirs); everything where a side has one value."""
    if min(len(ours), len(theirs)) < 2:
        return float("-inf"), float("inf")
    difference = statistics.mean(ours) - statistics.mean(theirs)
    parts = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    if not sum(parts):
        return difference, difference
    freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (ours, theirs), strict=True))
    half = float(student_t.ppf((1 + confidence) / 2, freedom)) * sum(parts) ** 0.5
    return difference - half, difference + half


def mean_and_deviation(values: list[float]) -> str:
    """Mean ± standard deviation, or the one value."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
