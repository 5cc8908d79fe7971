"""What the figures say: the table per task, the verdicts over seeds, the picture."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filbert.data.tasks import TASKS, Task
from filbert.evaluation.results import TEACHER, StudentResults, pareto_points
from filbert.evaluation.statistics import ReportConfig, mean_and_deviation, verdict, welch_interval

MIN_SEEDS = 3


@dataclass(frozen=True)
class Comparison:
    """What is said of one student beside another."""

    verdict: str  # BEATS, TIES, LOSES, INCONCLUSIVE or "not comparable to"
    other: str
    detail: str  # the interval, or what differs

    def __str__(self) -> str:
        return f"{self.verdict} `{self.other}`{self.detail}"


@dataclass(frozen=True)
class TableRow:
    """What a task's table says of one student."""

    student: str
    shape: str
    score: str
    of_teacher: str
    parameters: str
    smaller: str
    faster_1: str
    faster_32: str
    steps: str
    compared: tuple[Comparison, ...]


@dataclass(frozen=True)
class TaskSection:
    """What is said of one task."""

    task: Task
    lines: tuple[StudentResults, ...]
    rows: tuple[TableRow, ...]  # one a line
    tests: tuple[tuple[str, ...], ...]  # scores by test set, the first row the head; empty where there is one set
    notes: tuple[str, ...]  # Markdown: what is to be said of some students, and how all was measured


def build_sections(
    lines: list[StudentResults], config: ReportConfig, neighbours: dict[str, float]
) -> list[TaskSection]:
    """What is said of each task; `neighbours` are the scores of the control by the reference's label."""
    by_task: dict[str, list[StudentResults]] = {}
    for line in lines:
        by_task.setdefault(line.task, []).append(line)
    return [_section(found, config, neighbours.get(task)) for task, found in by_task.items()]


def _section(lines: list[StudentResults], config: ReportConfig, neighbours: float | None) -> TaskSection:
    task = TASKS[lines[0].task]
    teacher = next(line for line in lines if line.student == TEACHER)
    rows = tuple(
        TableRow(
            student=line.student,
            shape=_shape(line.details[0]["shape"]),
            score=mean_and_deviation(line.scores),
            of_teacher=f"{100 * statistics.mean(line.scores) / statistics.mean(teacher.scores):.1f} %",
            parameters=f"{line.median('parameters') / 1e6:.2f} M",
            smaller=f"{line.median('smaller'):.2f}×",
            faster_1=f"{line.median('faster', 'batch_1'):.2f}×",
            faster_32=f"{line.median('faster', 'batch_32'):.2f}×",
            steps=f"{line.median('steps'):.0f}",
            compared=verdicts(line, lines, config),
        )
        for line in lines
    )
    machine, facts = teacher.details[0]["machine"], teacher.details[0]
    protocol = (
        f"Score: {' and '.join(task.metrics)}, in points, on the test rows; mean ± standard deviation over seeds "
        f"{', '.join(map(str, lines[-1].seeds))}. Latency: float32, {facts['threads']} thread, teacher and student in turn, "
        f"medians; batch 1 is a row of median length ({facts['tokens']} tokens). {machine['processor']}, {machine['flags']}."
    )
    notes = tuple(filter(None, [_on_pruned(lines), _on_references(lines, neighbours), protocol]))
    return TaskSection(task, tuple(lines), rows, _on_tests(lines, task), notes)


def to_markdown(sections: list[TaskSection]) -> str:
    """The tables of all tasks."""
    return "\n\n".join(map(_task_table, sections))


def _task_table(section: TaskSection) -> str:
    rows = [("student", "layers × width", "score", "of teacher", "parameters", "smaller", "faster 1 / 32", "steps",
             "verdict")]  # fmt: skip
    for row in section.rows:
        compared = "<br>".join(map(str, row.compared))
        rows.append((row.student, row.shape, row.score, row.of_teacher, row.parameters, row.smaller,
                     f"{row.faster_1} / {row.faster_32}", row.steps, compared))  # fmt: skip
    tests = [markdown_table(section.tests)] if section.tests else []
    return "\n\n".join([f"### {section.task.name}", markdown_table(rows), *tests, *section.notes])


def verdicts(line: StudentResults, lines: list[StudentResults], config: ReportConfig) -> tuple[Comparison, ...]:
    """What is said of one of a task's lines, against each that it is compared with."""
    return tuple(_compared(line, other, config) for other in _rivals(line, lines, config))


def _rivals(line: StudentResults, lines: list[StudentResults], config: ReportConfig) -> list[StudentResults]:
    """What a method is compared with: those named for it, or the baseline where none of them was run."""
    if line.student in (TEACHER, config.baseline):
        return []
    named = [other for other in lines if other.student in config.against.get(line.student, ())]
    return named or [other for other in lines if other.student == config.baseline]


def _compared(line: StudentResults, other: StudentResults, config: ReportConfig) -> Comparison:
    """The verdict on one method against another."""
    if abs(line.median("parameters") / other.median("parameters") - 1) > config.same_size:
        return Comparison("not comparable to", other.student, ": parameters differ")
    if abs(line.median("steps") / other.median("steps") - 1) > config.same_steps:
        return Comparison("not comparable to", other.student, ": steps differ")
    ours, theirs = (each.details[0]["provenance"].get("transfer") for each in (line, other))
    if ours and theirs and ours != theirs:
        return Comparison("not comparable to", other.student, ": transfer rows differ")
    low, high = welch_interval(line.scores, other.scores, config.confidence)
    return Comparison(verdict(line.scores, other.scores, config), other.student, f" ({low:+.1f} to {high:+.1f})")


def _on_tests(lines: list[StudentResults], task: Task) -> tuple[tuple[str, ...], ...]:
    """Each student's score on each test set, where a task has several, such as one a language."""
    if len(task.tests) < 2:
        return ()
    names = [stem.rsplit("_", 1)[-1] for stem in task.tests.values()]
    found = [
        (
            line.student,
            *(mean_and_deviation([100 * figures[test]["score"] for figures in line.figures]) for test in task.tests),
        )
        for line in lines
    ]
    return (("student", *names), *found)


def _on_pruned(lines: list[StudentResults]) -> str:
    """What is to be said of students that were cut in width: their shape, and how much of what can be cut is gone."""
    said = []
    for line in lines:
        shape = line.details[0]["shape"]
        if "heads" in shape:
            said.append(
                f"`{line.student}`: heads {_widths(shape['heads'])}, neurons {_widths(shape['intermediate'])}, "
                f"rank {shape['rank']}, {line.median('smaller_prunable'):.2f}× fewer parameters in what can be pruned "
                "(layers and word embedding)."
            )
    return " ".join(said)


def _shape(shape: dict[str, Any]) -> str:
    """Layers × width; of a BiLSTM, embedding and units of both directions."""
    if "lstm" in shape:
        return f"{shape['embedding']}, 2 × {shape['lstm']}"
    return f"{shape['layers']} × {shape['hidden']}"


def _widths(values: list[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else " ".join(map(str, values))


def _on_references(lines: list[StudentResults], neighbours: float | None) -> str:
    """What is to be said of students that read references: their store, the time to find one, what it tells."""
    said = []
    for line in lines:
        if "store_bytes" not in line.figures[0]:
            continue
        found = [d["latency"]["1"] for d in line.details]
        own, at_hand = (statistics.median(f[arm]["median"] for f in found) for arm in ("student", "reference at hand"))
        store, weights = (line.median(name) / 1e6 for name in ("store_bytes", "bytes"))
        said.append(
            f"`{line.student}` reads a store of {store:.0f} MB beside {weights:.0f} MB of weights; at batch 1 it takes "
            f"{own:.2f} ms, {at_hand:.2f} ms with its reference at hand."
        )
        told = [d["information"] for d in line.details if d["information"]]
        if told:
            parts = {name: [t[name] for t in told] for name in ("without", "gain_nearest", "gain_random")}
            without, nearest, other = (f"{statistics.mean(v):.2f}" + _deviation(v) for v in parts.values())
            said.append(
                f"InfoNCE: I(S; T) ≥ {without} nats; the nearest reference adds {nearest}, a random one {other}."
            )
    if said and neighbours is not None:
        said.append(f"The label of the nearest training row alone would score {100 * neighbours:.1f}.")
    return " ".join(said)


def _deviation(values: list[float]) -> str:
    return f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def draw_pareto(lines: list[StudentResults], file: Path) -> None:
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
                values = pareto_points([line])
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
