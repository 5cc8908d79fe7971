"""The figures that `evaluate` wrote, gathered by task and student; those that do not belong together do not meet."""

import csv
import io
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filbert import FilbertError
from filbert.data.tasks import TASKS
from filbert.runtime import progress
from filbert.runtime.files import read_json
from filbert.tracking import run_fields

TEACHER = "teacher"
OF_A_SEED = ("seed", "start")  # what may differ between the seeds of one line


@dataclass(frozen=True)
class StudentResults:
    """One task × student, over its seeds: figures and details as `evaluate` wrote them, in the order of the seeds."""

    task: str
    student: str
    seeds: tuple[int, ...]
    figures: tuple[dict[str, Any], ...]
    details: tuple[dict[str, Any], ...]

    @property
    def scores(self) -> list[float]:
        """Test scores in points, one per seed; the mean over the test sets where a task has several."""
        return list(map(run_fields.test_score, self.figures))

    def median(self, *path: str) -> float:
        """The median over seeds of the figure at `path`."""
        values: list[Any] = list(self.figures)
        for name in path:
            values = [value[name] for value in values]
        return statistics.median(values)


def load_results(metrics: Path, details: Path) -> list[StudentResults]:
    """All lines under `metrics`, by task in the order of the task table, the teacher first; lines of another teacher or other
    rows than their task's are left out."""
    lines = []
    folders = (f for task in metrics.iterdir() if task.is_dir() for f in task.iterdir() if f.is_dir())
    for folder in folders:
        files = sorted(folder.glob("[0-9]*.json"), key=lambda file: int(file.stem))
        beside = [details / folder.parent.name / folder.name / file.name for file in files]
        read = [tuple(map(read_json, group)) for group in (files, beside)]
        lines.append(
            StudentResults(folder.parent.name, folder.name, tuple(int(f.stem) for f in files), read[0], read[1])
        )
    teachers = {line.task: line for line in lines if line.student == TEACHER}
    kept = []
    for line in lines:
        _check(line, teachers.get(line.task))
        if different := _foreign(line, teachers[line.task]):
            progress.log(
                f"{line.task}/{line.student} is left out of the table: made with another {different} than the teacher"
            )
        else:
            kept.append(line)
    order = list(TASKS)
    return sorted(kept, key=lambda line: (order.index(line.task), line.student != TEACHER, line.student))


def nearest_label_scores(metrics: Path, lines: list[StudentResults]) -> dict[str, float]:
    """By task what the label of the nearest training row alone would score on the test rows.

    Raises:
        FilbertError: it was measured on other rows than the task's teacher.
    """
    found: dict[str, float] = {}
    for line in lines:
        file = metrics / line.task / "references.json"
        if line.student == TEACHER and file.exists():
            said, rows = read_json(file), line.details[0]["provenance"]["rows"]
            if said["rows"] != rows:
                raise FilbertError(
                    f"{file}: made with rows = {said['rows']}, the teacher of the task with {rows}; run `dvc repro`"
                )
            scores = [score for name, score in said["neighbours"].items() if name.startswith("test")]
            found |= {line.task: statistics.mean(scores)} if scores else {}  # none of tagged rows
    return found


def _check(line: StudentResults, teacher: StudentResults | None) -> None:
    """Refuse figures that do not belong together: seeds of one line made with different settings, teachers or rows."""
    where = f"{line.task}/{line.student}"
    if line.task not in TASKS or teacher is None:
        raise FilbertError(f"figures of {where}: no such task or no teacher; remove its folders or run `dvc repro`")
    made = [{"teacher": d["teacher"], **d["provenance"], **dict.fromkeys(OF_A_SEED)} for d in line.details]
    for seed, found in zip(line.seeds, made, strict=True):
        for name, wanted in made[0].items():
            if found.get(name) != wanted:
                raise FilbertError(
                    f"figures of {where}, seed {seed}: made with {name} = {found.get(name)}, seed {line.seeds[0]} with {wanted}; "
                    f"they cannot stand in one table. Run `dvc repro`, or remove the stale files of {where}"
                )


def _foreign(line: StudentResults, teacher: StudentResults) -> str:
    """What a line has of another teacher or other rows than its task's: left from an earlier run, of a method not listed now."""
    ours, theirs = line.details[0], teacher.details[0]
    if ours["teacher"] != theirs["teacher"]:
        return "teacher"
    return "choice of rows" if ours["provenance"]["rows"] != theirs["provenance"]["rows"] else ""


def pareto_points(lines: list[StudentResults]) -> list[dict[str, Any]]:
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


def validation_curves(lines: list[StudentResults]) -> Iterator[dict[str, Any]]:
    """The validation scores of every training run, step by step."""
    for line in lines:
        for seed, details in zip(line.seeds, line.details, strict=True):
            for point in details["curve"]:
                yield {"run": f"{line.task}/{line.student}/{seed}", "task": line.task, "student": line.student, **point}


def to_csv(rows: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
