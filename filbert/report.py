"""What the figures say: the table per task, the verdicts over seeds, the curves and the picture."""

import csv
import io
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

from filbert import FilbertError
from filbert.files import read_json
from filbert.tasks import TASKS

TEACHER = "teacher"
MIN_SEEDS = 3


@dataclass(frozen=True)
class ReportConfig:
    """Against what, and how sure."""

    baseline: str  # the method of the same size that others must beat
    margin: float  # points within which two means count as equal
    confidence: float  # of the interval of the difference


@dataclass(frozen=True)
class Line:
    """One task × student, over its seeds: figures and details as `evaluate` wrote them, in the order of the seeds."""

    task: str
    student: str
    seeds: tuple[int, ...]
    figures: tuple[dict[str, Any], ...]
    details: tuple[dict[str, Any], ...]

    @property
    def scores(self) -> list[float]:
        """Test scores in points, one per seed; the mean over the test sets where a task has several."""
        return [
            100 * statistics.mean(v["score"] for name, v in figures.items() if name.startswith("test"))
            for figures in self.figures
        ]

    def median(self, *path: str) -> float:
        """The median over seeds of the figure at `path`."""
        values: list[Any] = list(self.figures)
        for name in path:
            values = [value[name] for value in values]
        return statistics.median(values)


def gather(metrics: Path, details: Path) -> list[Line]:
    """All lines under `metrics`, by task in the order of the task table, the teacher first."""
    lines = []
    folders = (f for task in metrics.iterdir() if task.is_dir() for f in task.iterdir() if f.is_dir())
    for folder in folders:
        files = sorted(folder.glob("[0-9]*.json"), key=lambda file: int(file.stem))
        beside = [details / folder.parent.name / folder.name / file.name for file in files]
        read = [tuple(map(read_json, group)) for group in (files, beside)]
        lines.append(Line(folder.parent.name, folder.name, tuple(int(f.stem) for f in files), read[0], read[1]))
    for line in lines:
        _check(line, next((other for other in lines if (other.task, other.student) == (line.task, TEACHER)), None))
    order = list(TASKS)
    return sorted(lines, key=lambda line: (order.index(line.task), line.student != TEACHER, line.student))


def _check(line: Line, teacher: Line | None) -> None:
    """Refuse figures that do not belong together: of another teacher or other rows, or seeds of different settings."""
    where = f"{line.task}/{line.student}"
    if line.task not in TASKS or teacher is None:
        raise FilbertError(f"figures of {where}: no such task or no teacher; remove its folders or run `dvc repro`")
    made, theirs = (
        [{"teacher": d["teacher"], **d["made_with"], "seed": None} for d in of.details] for of in (line, teacher)
    )
    wanted = made[0] | {name: theirs[0][name] for name in ("rows", "teacher")}
    for seed, found in zip(line.seeds, made, strict=True):
        for name in wanted:
            if found.get(name) != wanted[name]:
                raise FilbertError(
                    f"figures of {where}, seed {seed}: made with {name} = {found.get(name)}, the others of the task with "
                    f"{wanted[name]}; they cannot stand in one table. Run `dvc repro`, or remove the stale files of {where}"
                )


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


def points(lines: list[Line]) -> list[dict[str, Any]]:
    """One point per task, student and seed: what the Pareto picture and `dvc plots` draw."""
    return [
        {
            "task": line.task,
            "student": line.student,
            "seed": seed,
            "score": round(score, 3),
            "parameters": figures["parameters"],
            "multiply_adds": figures["multiply_adds"],
            "milliseconds": figures["milliseconds"]["batch_1"],
        }
        for line in lines
        for seed, score, figures in zip(line.seeds, line.scores, line.figures, strict=True)
    ]


def curves(lines: list[Line]) -> Iterator[dict[str, Any]]:
    """The validation scores of every training run, step by step."""
    for line in lines:
        for seed, details in zip(line.seeds, line.details, strict=True):
            for point in details["curve"]:
                yield {"run": f"{line.task}/{line.student}/{seed}", "task": line.task, "student": line.student, **point}


def as_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


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
