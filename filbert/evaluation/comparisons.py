"""A student beside its baselines: better, equal, worse or not told apart, where size, steps and transfer rows are the same."""

from dataclasses import dataclass
from typing import Literal

from filbert.evaluation.results import TEACHER, StudentResults
from filbert.evaluation.statistics import ReportConfig, Verdict, verdict, welch_interval

PHRASES = {
    "better": "better than",
    "equal": "equal to",
    "worse": "worse than",
    "not told apart": "not told apart from",
    "not comparable": "not comparable to",
}


@dataclass(frozen=True)
class Comparison:
    """The verdict on one student beside another."""

    verdict: Verdict | Literal["not comparable"]
    baseline: str
    detail: str  # the interval in points, or what differs

    @property
    def phrase(self) -> str:
        return PHRASES[self.verdict]

    def __str__(self) -> str:
        return f"{self.phrase} `{self.baseline}` ({self.detail})"


def verdict_rule(config: ReportConfig) -> str:
    """How a verdict is found, in words."""
    return (
        f"A difference is that of two mean scores with its {config.confidence:.0%} Welch interval in points: equal if the interval "
        f"lies within ± {config.margin}, else better or worse if it excludes 0, else not told apart. Students of one seed are not "
        "compared."
    )


def compare(result: StudentResults, results: list[StudentResults], config: ReportConfig) -> tuple[Comparison, ...]:
    """A student beside each of its baselines among the results of its task; nothing where a side has one seed."""
    baselines = _baselines(result, results, config)
    return tuple(_compare(result, other, config) for other in baselines if min(len(result.seeds), len(other.seeds)) > 1)


def _baselines(result: StudentResults, results: list[StudentResults], config: ReportConfig) -> list[StudentResults]:
    """What a student is compared with: those named for it, or the baseline where none of them was run."""
    if result.student in (TEACHER, config.baseline):
        return []
    named = [other for other in results if other.student in config.against.get(result.student, ())]
    return named or [other for other in results if other.student == config.baseline]


def _compare(result: StudentResults, other: StudentResults, config: ReportConfig) -> Comparison:
    if different := _difference(result, other, config):
        return Comparison("not comparable", other.student, f"{different} differ")
    low, high = welch_interval(result.scores, other.scores, config.confidence)
    return Comparison(verdict(result.scores, other.scores, config), other.student, f"{low:+.1f} to {high:+.1f}")


def _difference(result: StudentResults, other: StudentResults, config: ReportConfig) -> str:
    """What makes two students not comparable; empty where nothing does."""
    for name, tolerance in (("parameters", config.same_size), ("steps", config.same_steps)):
        if abs(result.median(name) / other.median(name) - 1) > tolerance:
            return name
    ours, others = (each.details[0]["provenance"].get("transfer") for each in (result, other))
    return "transfer rows" if ours and others and ours != others else ""
