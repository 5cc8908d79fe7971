"""Confidence intervals of differences between mean scores over seeds, and the verdict that they allow."""

import statistics
from dataclasses import dataclass
from typing import Annotated, Literal

from scipy.stats import t as student_t

from filbert.runtime.config import NonNegative, Range

MIN_SEEDS = 3  # of either side, for any verdict but "not told apart"

Verdict = Literal["better", "equal", "worse", "not told apart"]


@dataclass(frozen=True)
class ReportConfig:
    """What students are compared with, and the confidence of a verdict."""

    baseline: str  # the student that all others are compared with
    against: dict[str, tuple[str, ...]]  # by student, what it is compared with instead
    same_size: NonNegative  # largest relative difference of the parameters of two students that are compared
    same_steps: NonNegative  # likewise of their steps
    margin: NonNegative  # points within which two means count as equal
    confidence: Annotated[float, Range(0.5, 0.9999)]  # of the interval of the difference


def verdict(ours: list[float], baseline: list[float], config: ReportConfig) -> Verdict:
    """What the Welch interval of the difference of means says: equal if it lies within ± margin, else better or worse if it
    excludes 0, else not told apart; always not told apart below three seeds on either side."""
    low, high = welch_interval(ours, baseline, config.confidence)
    if min(len(ours), len(baseline)) < MIN_SEEDS:
        return "not told apart"
    if -config.margin <= low and high <= config.margin:
        return "equal"
    if low > 0 or high < 0:
        return "better" if low > 0 else "worse"
    return "not told apart"


def welch_interval(ours: list[float], baseline: list[float], confidence: float) -> tuple[float, float]:
    """The Welch confidence interval of mean(ours) - mean(baseline); infinite where a side has one value."""
    if min(len(ours), len(baseline)) < 2:
        return float("-inf"), float("inf")
    difference = statistics.mean(ours) - statistics.mean(baseline)
    parts = [statistics.variance(values) / len(values) for values in (ours, baseline)]
    if not sum(parts):
        return difference, difference
    freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (ours, baseline), strict=True))
    half = float(student_t.ppf((1 + confidence) / 2, freedom)) * sum(parts) ** 0.5
    return difference - half, difference + half


def standard_deviation(values: list[float]) -> float:
    """The standard deviation over seeds; 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_deviation(values: list[float], digits: int = 1) -> str:
    """Mean ± standard deviation, or the one value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
