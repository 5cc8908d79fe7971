"""The tables of results: a section for each task, as Markdown for docs/results.md and as text for a terminal."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from filbert.data.tasks import Task, find
from filbert.evaluation.comparisons import Comparison, compare, share_of_teacher
from filbert.evaluation.results import TEACHER, StudentResults
from filbert.evaluation.statistics import ReportConfig, mean_and_deviation

HEAD = ("student", "score", "of teacher", "at least", "parameters", "smaller", "faster 1 / 32", "steps")
LONGEST_NAME = 32  # of a student in a terminal
FILES_NOTE = (
    "What can be deployed: exported files, run by onnxruntime, and what a user would take instead. MB: model, tokenizer and "
    "references; ms: from text to answer, one text of median length, one thread. `front`: nothing is better in validation score, "
    "size and time at once. `dominated by`: that baseline is at least as good in test score, size and time."
)


@dataclass(frozen=True)
class TableRow:
    """One student in a task's table."""

    student: str
    shape: str
    score: str
    of_teacher: str
    at_least: str  # of the teacher's score, with the report's confidence; empty where the test rows were not kept
    parameters: str
    smaller: str
    faster_1: str
    faster_32: str
    steps: str
    comparisons: tuple[Comparison, ...]

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells under HEAD."""
        return (self.student, self.score, self.of_teacher, self.at_least, self.parameters, self.smaller,
                f"{self.faster_1} / {self.faster_32}", self.steps)  # fmt: skip


@dataclass(frozen=True)
class Beside:
    """What stands beside the students of a task."""

    nearest_label: float | None = None  # the score, a fraction, of predicting the nearest training row's label
    tfidf: float | None = None  # the score, in points, of TF-IDF with logistic regression
    files: tuple[tuple[str, ...], ...] = ()  # what can be deployed (filbert.export.pick.table_rows)


@dataclass(frozen=True)
class TaskSection:
    """The results of one task."""

    task: Task
    results: tuple[StudentResults, ...]
    rows: tuple[TableRow, ...]  # one for each of `results`
    tests: tuple[tuple[str, ...], ...]  # scores by test set, the first row the head; empty where there is one set
    files: tuple[
        tuple[str, ...], ...
    ]  # what can be deployed, and the baselines; the first row the head; empty where nothing was exported
    notes: tuple[str, ...]  # Markdown: pruned students, references, the protocol

    @property
    def seeds(self) -> str:
        """What the scores are means over."""
        seeds = sorted({seed for result in self.results if result.student != TEACHER for seed in result.seeds})
        if len(seeds) < 2:
            return "one seed: intervals are of test rows alone, no claim about methods"
        return f"mean ± standard deviation over seeds {', '.join(map(str, seeds))}"


def build_sections(
    results: list[StudentResults], config: ReportConfig, beside: Mapping[str, Beside]
) -> list[TaskSection]:
    """A section for each task; `beside` is by task what stands beside its students."""
    by_task: dict[str, list[StudentResults]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result)
    return [_section(found, config, beside.get(task, Beside())) for task, found in by_task.items()]


def _section(results: list[StudentResults], config: ReportConfig, beside: Beside) -> TaskSection:
    task = find(results[0].task)
    teacher = next(result for result in results if result.student == TEACHER)
    comparisons = compare(results, config)
    rows = tuple(_row(result, teacher, config, comparisons[result.student]) for result in results)
    section = TaskSection(task, tuple(results), rows, _test_sets(results, task), beside.files, ())
    notes = (
        _pruning_note(results),
        _references_note(results, beside.nearest_label),
        _below_tfidf_note(results, beside.tfidf),
        _length_note(results),
        _protocol_note(task, teacher, section.seeds),
        FILES_NOTE if beside.files else "",
    )
    return replace(section, notes=tuple(filter(None, notes)))


def _row(
    result: StudentResults, teacher: StudentResults, config: ReportConfig, comparisons: tuple[Comparison, ...]
) -> TableRow:
    at_least = None if result.student == TEACHER else share_of_teacher(result, teacher, config.confidence)
    return TableRow(
        student=result.student,
        shape=_shape(result.details[0]["shape"]),
        score=mean_and_deviation(result.scores),
        of_teacher=_percent(statistics.mean(result.scores), statistics.mean(teacher.scores)),
        at_least="" if at_least is None else f"{at_least:.1f} %",
        parameters=f"{result.median('parameters') / 1e6:.2f} M",
        smaller=f"{result.median('smaller'):.2f}×",
        faster_1=f"{result.median('faster', 'batch_1'):.2f}×",
        faster_32=f"{result.median('faster', 'batch_32'):.2f}×",
        steps=f"{result.median('steps'):.0f}",
        comparisons=comparisons,
    )


def _percent(score: float, teacher: float) -> str:
    return f"{100 * score / teacher:.1f} %" if teacher else "–"  # of a teacher that scores nothing


def to_markdown(sections: list[TaskSection]) -> str:
    """The tables of all tasks; a column of differences only where students were compared."""
    return "\n\n".join(map(_markdown_section, sections))


def _markdown_section(section: TaskSection) -> str:
    compared = any(row.comparisons for row in section.rows)
    rows = [(*HEAD, "difference")] + [(*row.cells, "<br>".join(map(str, row.comparisons))) for row in section.rows]
    table = markdown_table(rows if compared else [row[:-1] for row in rows])
    more = [markdown_table(table) for table in (section.tests, section.files) if table]
    return "\n\n".join([f"### {section.task.name}", table, *more, *section.notes])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table, the first its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def to_terminal(sections: list[TaskSection]) -> str:
    """The tables of all tasks as plain text, at most 110 columns wide."""
    return "\n\n".join(map(_terminal_section, sections))


def _terminal_section(section: TaskSection) -> str:
    rows = [HEAD, *((_shorten(row.student), *row.cells[1:]) for row in section.rows)]
    title = f"{section.task.name}: {' and '.join(section.task.metrics)}, {section.seeds}"
    files = (
        [f"\nwhat can be deployed (onnxruntime, 1 text, 1 thread)\n{terminal_table(section.files)}"]
        if section.files
        else []
    )
    return "\n".join([title, terminal_table(rows), *files])


def terminal_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as plain text, the first the head: numbers to the right, the first column and remarks to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {0} | {at for at, name in enumerate(rows[0]) if name == "remark"}

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(c.ljust(w) if at in left else c.rjust(w) for at, (c, w) in enumerate(cells)).rstrip()

    return "\n".join(map(line, rows))


def _shorten(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _test_sets(results: list[StudentResults], task: Task) -> tuple[tuple[str, ...], ...]:
    """Each student's score on each test set, where a task has several, such as one a language."""
    if len(task.test_files) < 2:
        return ()
    names = [stem.rsplit("_", 1)[-1] for stem in task.test_files.values()]
    scores = [
        [mean_and_deviation([100 * figures[test]["score"] for figures in result.figures]) for test in task.test_files]
        for result in results
    ]
    return (("student", *names), *((result.student, *row) for result, row in zip(results, scores, strict=True)))


def _protocol_note(task: Task, teacher: StudentResults, seeds: str) -> str:
    details = teacher.details[0]
    machine = details["machine"]
    return (
        f"Score: {' and '.join(task.metrics)}, in points, on the test rows; {seeds}. Latency: float32, {details['threads']} "
        f"thread, teacher and student in turn, medians; batch 1 is a row of median length ({details['tokens']} tokens). "
        f"{machine['processor']}, {machine['flags']}."
    )


def _length_note(results: list[StudentResults]) -> str:
    """The models whose training ended, with any seed, at its best validation score, or was judged once."""
    rising = [result.student for result in results if any(f.get("still_rising") for f in result.figures)]
    named = ", ".join(f"`{name}`" for name in rising)
    return (
        f"The last validation score was the best, or the only one, of {named}: train longer (`epochs`, `min_steps`)."
        if rising
        else ""
    )


def _pruning_note(results: list[StudentResults]) -> str:
    """The shapes of students that were pruned in width, and how much smaller their layers and word embedding are."""
    notes = []
    for result in results:
        shape = result.details[0]["shape"]
        if "heads" in shape:
            notes.append(
                f"`{result.student}`: heads {_widths(shape['heads'])}, neurons {_widths(shape['intermediate'])}, "
                f"rank {shape['rank']}, {result.median('smaller_prunable'):.2f}× fewer parameters in what can be pruned "
                "(layers and word embedding)."
            )
    return " ".join(notes)


def _below_tfidf_note(results: list[StudentResults], tfidf: float | None) -> str:
    """The students that a linear model on words beats."""
    below = [result.student for result in results if tfidf is not None and statistics.mean(result.scores) < tfidf]
    return (
        f"Below TF-IDF with logistic regression ({tfidf:.1f}): {', '.join(f'`{name}`' for name in below)}."
        if below
        else ""
    )


def _shape(shape: dict[str, Any]) -> str:
    """Layers × width; of a BiLSTM, embedding and units of both directions."""
    if "lstm" in shape:
        return f"{shape['embedding']}, 2 × {shape['lstm']}"
    return f"{shape['layers']} × {shape['hidden']}"


def _widths(values: list[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else " ".join(map(str, values))


def _references_note(results: list[StudentResults], nearest_label: float | None) -> str:
    """Of students that read references: the size of their store, the time to find a reference, and how much one adds."""
    notes = []
    for result in results:
        if "store_bytes" not in result.figures[0]:
            continue
        latency = [details["latency"]["1"] for details in result.details]
        whole, given = (
            statistics.median(f[arm]["median"] for f in latency) for arm in ("student", "reference at hand")
        )
        store, weights = (result.median(name) / 1e6 for name in ("store_bytes", "bytes"))
        notes.append(
            f"`{result.student}` reads a store of {store:.0f} MB beside {weights:.0f} MB of weights; at batch 1 it takes "
            f"{whole:.2f} ms, {given:.2f} ms with its reference given."
        )
        estimates = [details["information"] for details in result.details if details["information"]]
        if estimates:
            names = ("without", "gain_nearest", "gain_random")
            without, nearest, other = (mean_and_deviation([e[name] for e in estimates], digits=2) for name in names)
            notes.append(
                f"InfoNCE: I(S; T) ≥ {without} nats; the nearest reference adds {nearest}, a random one {other}."
            )
    if notes and nearest_label is not None:
        notes.append(f"The label of the nearest training row alone would score {100 * nearest_label:.1f}.")
    return " ".join(notes)
