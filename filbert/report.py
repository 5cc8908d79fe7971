"""What the figures say: the table per task, the verdicts over seeds, the picture."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student_t

from filbert.figures import TEACHER, Line, points
from filbert.tasks import TASKS

MIN_SEEDS = 3


@dataclass(frozen=True)
class ReportConfig:
    """Against what, and how sure."""

    baseline: str  # the method of the same size that others must beat
    margin: float  # points within which two means count as equal
    confidence: float  # of the interval of the difference


def verdict(ours: list[float], theirs: list[float], config: ReportConfig) -> str:
    """BEATS, TIES, LOSES or INCONCLUSIVE: where the Welch interval of the difference of means lies.

    TIES if it lies within ± margin, else BEATS or LOSES if it excludes 0, else INCONCLUSIVE; always INCONCLUSIVE below
    three seeds on either side.
    """
    low, high = interval(ours, theirs, config.confidence)
    if min(len(ours), len(theirs)) < MIN_SEEDS:
        return "INCONCLUSIVE"
    if -config.margin <= low and high <= config.margin:
        return "TIES"
    if low > 0 or high < 0:
        return "BEATS" if low > 0 else "LOSES"
    return "INCONCLUSIVE"


def interval(ours: list[float], theirs: list[float], confidence: float) -> tuple[float, float]:
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


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, or the one value."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def markdown(lines: list[Line], config: ReportConfig) -> str:
    """The tables of all tasks."""
    tasks = list(dict.fromkeys(line.task for line in lines))
    return "\n\n".join(_task_table([line for line in lines if line.task == task], config) for task in tasks)


def _task_table(lines: list[Line], config: ReportConfig) -> str:
    task = TASKS[lines[0].task]
    teacher = next(line for line in lines if line.student == TEACHER)
    baseline = next((line for line in lines if line.student == config.baseline), None)
    rows = [["student", "layers × width", "score", "of teacher", "parameters", "smaller", "faster 1 / 32", "steps",
             f"against `{config.baseline}`"]]  # fmt: skip
    for line in lines:
        shape = line.details[0]["shape"]
        compared = baseline is not None and line.student not in (TEACHER, config.baseline)
        rows.append([
            line.student,
            f"{shape['layers']} × {shape['hidden']}",
            spread(line.scores),
            f"{100 * statistics.mean(line.scores) / statistics.mean(teacher.scores):.1f} %",
            f"{line.median('parameters') / 1e6:.2f} M",
            f"{line.median('smaller'):.2f}×",
            f"{line.median('faster', 'batch_1'):.2f}× / {line.median('faster', 'batch_32'):.2f}×",
            f"{line.median('steps'):.0f}",
            _compared(line, baseline, config) if compared and baseline else "",
        ])  # fmt: skip
    machine, facts = teacher.details[0]["machine"], teacher.details[0]
    note = (
        f"Score: {' and '.join(task.metrics)}, in points, on the test rows; mean ± standard deviation over seeds "
        f"{', '.join(map(str, lines[-1].seeds))}. Latency: float32, {facts['threads']} thread, teacher and student in turn, "
        f"medians; batch 1 is a row of median length ({facts['tokens']} pieces). {machine['processor']}, {machine['flags']}."
    )
    return f"### {task.name}\n\n{_table(rows)}\n\n{note}"


def _compared(line: Line, baseline: Line, config: ReportConfig) -> str:
    for name in ("parameters", "steps"):
        if line.median(name) != baseline.median(name):
            return f"not comparable: {name} differ"
    low, high = interval(line.scores, baseline.scores, config.confidence)
    return f"{verdict(line.scores, baseline.scores, config)} ({low:+.1f} to {high:+.1f})"


def _table(rows: list[list[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def draw(lines: list[Line], file: Path) -> None:
    """The Pareto picture: score against size and against latency, one row per task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks, axes = list(dict.fromkeys(line.task for line in lines)), (("parameters", "million parameters", 1e-6),
                                                                     ("milliseconds", "ms for one row, 1 thread", 1.0))  # fmt: skip
    plt.rcParams["svg.hashsalt"] = "filbert"
    figure, grid = plt.subplots(len(tasks), 2, figsize=(9, 3.2 * len(tasks)), squeeze=False, sharey="row")
    students = list(dict.fromkeys(line.student for line in lines))
    for row, task in zip(grid, tasks, strict=True):
        for panel, (name, label, scale) in zip(row, axes, strict=True):
            for line in (line for line in lines if line.task == task):
                values = points([line])
                x = statistics.median(v[name] for v in values) * scale
                panel.errorbar(
                    x, statistics.mean(line.scores),
                    yerr=statistics.stdev(line.scores) if len(line.scores) > 1 else None,
                    fmt="o*sD^vPX"[students.index(line.student) % 8], capsize=3, label=line.student,
                )  # fmt: skip
            panel.set_xlabel(label)
            panel.set_xlim(left=0)
            panel.grid(alpha=0.3)
        row[0].set_ylabel(f"{task}: {' + '.join(TASKS[task].metrics)}")
        row[1].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
