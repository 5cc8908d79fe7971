"""A student beside its baselines: better, equal, worse or not told apart, where size, steps, seeds and transfer rows are equal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from filbert.data.tasks import find
from filbert.evaluation.bootstrap import resample_seeds
from filbert.evaluation.results import TEACHER, StudentResults
from filbert.evaluation.statistics import ReportConfig, Verdict, holm, interval, p_value, verdict

PHRASES = {
    "better": "better than",
    "equal": "equal to",
    "worse": "worse than",
    "not told apart": "not told apart from",
    "not comparable": "not comparable to",
}
ROWS_ALONE = "rows alone"


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


@dataclass(frozen=True)
class Difference:
    """How much better a student is than another, resampled; or why that cannot be said."""

    student: str
    baseline: str
    draws: np.ndarray  # [DRAWS] points; empty where there is an obstacle
    margin: float  # points within which they count as equal
    seeds: int = 0
    obstacle: str = ""  # what differs, or is missing


def verdict_rule(config: ReportConfig) -> str:
    """How a verdict is found, in words."""
    margins = "".join(f", {margin} of {name}" for name, margin in config.margins.items())
    return (
        f"A difference is that of two mean scores with its {config.confidence:.0%} interval in points, by a joint bootstrap over "
        f"test rows and seeds, paired by both: equal if the interval lies within ± {config.margin}{margins}, else better or worse "
        "if it excludes 0, else not told apart; the intervals of one table are widened by Holm's method. Of one seed it is of test "
        "rows alone: of these two models, not of their methods. `at least` is the lower end of the interval of the share of the "
        "teacher."
    )


def compare(results: Sequence[StudentResults], config: ReportConfig) -> dict[str, tuple[Comparison, ...]]:
    """By student of one task its comparisons with each of its baselines among the results, corrected by Holm for all of them."""
    pairs = [(result, other) for result in results for other in _baselines(result, results, config)]
    differences = [difference(result, other, config) for result, other in pairs]
    found: dict[str, tuple[Comparison, ...]] = {result.student: () for result in results}
    for each, comparison in zip(differences, judge_all(differences, config.confidence), strict=True):
        found[each.student] += (comparison,)
    return found


def _baselines(result: StudentResults, results: Sequence[StudentResults], config: ReportConfig) -> list[StudentResults]:
    """What a student is compared with: those named for it, or the baseline where none of them was run."""
    if result.student in (TEACHER, config.baseline):
        return []
    named = [other for other in results if other.student in config.against.get(result.student, ())]
    return named or [other for other in results if other.student == config.baseline]


def difference(result: StudentResults, other: StudentResults, config: ReportConfig) -> Difference:
    """The difference of the mean scores of two students of one task, paired by test row and seed."""
    margin = config.margin_of(find(result.task).metrics)
    if obstacle := _obstacle(result, other, config):
        return Difference(result.student, other.student, np.empty(0), margin, obstacle=obstacle)
    draws = resample_seeds(result.resampled - other.resampled, result.task)
    return Difference(result.student, other.student, draws, margin, len(result.seeds))


def mean_difference(differences: Sequence[Difference]) -> Difference:
    """The mean over tasks, whose rows and seeds are drawn independently."""
    if blocked := next((each for each in differences if each.obstacle), None):
        return blocked
    draws, margins = (np.array([getattr(each, name) for each in differences]) for name in ("draws", "margin"))
    fewest = min(each.seeds for each in differences)
    return replace(differences[0], draws=draws.mean(0), margin=float(margins.mean()), seeds=fewest)


def judge(difference: Difference, confidence: float) -> Comparison:
    """The verdict that the interval at this confidence allows."""
    if difference.obstacle:
        return Comparison("not comparable", difference.baseline, difference.obstacle)
    low, high = interval(difference.draws, confidence)
    detail = f"{low:+.1f} to {high:+.1f}" + (f", {ROWS_ALONE}" if difference.seeds == 1 else "")
    return Comparison(verdict(difference.draws, difference.margin, confidence), difference.baseline, detail)


def judge_all(differences: Sequence[Difference], confidence: float) -> list[Comparison]:
    """The verdicts on several differences, corrected by Holm."""
    tested = [each for each in differences if not each.obstacle]
    confidences = iter(holm([p_value(each.draws, each.margin) for each in tested], confidence))
    return [judge(each, confidence if each.obstacle else next(confidences)) for each in differences]


def share_of_teacher(result: StudentResults, teacher: StudentResults, confidence: float) -> float | None:
    """What a student keeps at least of its teacher's score, in percent: the lower end of the interval of the ratio, paired by test
    row; the teacher is one model. None where the rows of either were not kept."""
    if not (result.predictions and teacher.predictions):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 100 * result.resampled / teacher.resampled.mean(0)
    if not np.isfinite(ratio).all():  # a teacher that scores nothing on some sample
        return None
    return interval(resample_seeds(ratio, result.task), confidence)[0]


def _obstacle(result: StudentResults, other: StudentResults, config: ReportConfig) -> str:
    """What makes two students not comparable; empty where nothing does."""
    for name, what, tolerance in (
        ("parameters", "parameters", config.same_size),
        ("step_budget", "steps", config.same_steps),
    ):
        if abs(result.median(name) / other.median(name) - 1) > tolerance:
            return f"{what} differ"
    ours, others = (each.details[0]["provenance"].get("transfer_rows") for each in (result, other))
    if ours and others and ours != others:
        return "transfer rows differ"
    if result.seeds != other.seeds:
        return "seeds differ"
    return "" if result.predictions and other.predictions else "test rows were not kept"
