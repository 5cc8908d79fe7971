"""The figures that the `evaluate` stage wrote, by task and student over seeds; figures that do not belong together are refused."""

import csv
import io
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from filbert import FilbertError
from filbert.data import tasks
from filbert.evaluation.bootstrap import resample_rows
from filbert.runtime import progress, seals
from filbert.runtime.config import TEACHER, student_names
from filbert.runtime.files import read_json
from filbert.tracking import run_fields

TEACHER_SEED = 0
LATENCY = "latency.json"  # beside the folders of the students
SAME_SCORE = 0.01  # points by which the scores of predictions and figures may differ: float32
SEED_KEYS = ("seed", "start")  # provenance that may differ between the seeds of one student

Key = tuple[str, str, int]  # task, student, seed


@dataclass(frozen=True)
class StudentResults:
    """One student of one task, over its seeds: figures and details as `evaluate` wrote them, in the order of the seeds."""

    task: str
    student: str
    seeds: tuple[int, ...]
    figures: tuple[dict[str, Any], ...]
    details: tuple[dict[str, Any], ...]
    predictions: tuple[Path, ...] = ()  # files of test rows, one per seed; none where they were not kept

    @property
    def scores(self) -> list[float]:
        """Test scores in points, one per seed; the mean over the test sets where a task has several."""
        return list(map(run_fields.test_score, self.figures))

    @cached_property
    def resampled(self) -> np.ndarray:
        """[S, 1 + DRAWS] points, the scores and those of resampled test rows: bootstrap.resample_rows.

        Raises:
            FilbertError: they are damaged, or of other rows than the figures.
        """
        for file, made in zip(self.predictions, self.details, strict=True):
            if (written := made.get("test_rows")) not in (None, here := seals.xxh3(file)):
                raise FilbertError(
                    f"{file}: expected the rows that `evaluate` wrote, XXH3 {written}, found {here}; run `dvc repro`"
                )
        found = resample_rows(tasks.find(self.task), self.predictions)
        for file, ours, told in zip(self.predictions, found[:, 0], self.scores, strict=True):
            if abs(ours - told) > SAME_SCORE:
                raise FilbertError(f"{file}: its rows score {ours:.2f}, the figures say {told:.2f}; run `dvc repro`")
        return found

    def median(self, *path: str) -> float:
        """The median over seeds of the figure at `path`."""
        values: list[Any] = list(self.figures)
        for name in path:
            values = [value[name] for value in values]
        return statistics.median(values)


def selected(params: dict[str, Any]) -> set[Key]:
    """The results that a run with these params makes: each task's teacher, and its students by seed."""
    made = {
        (task, name, seed) for task in params["tasks"] for name in student_names(params) for seed in params["seeds"]
    }
    return made | {(task, TEACHER, TEACHER_SEED) for task in params["tasks"]}


def load_results(metrics: Path, details: Path, only: set[Key] | None = None) -> list[StudentResults]:
    """All results under `metrics`, or `only` some; tasks in the order of the task table, the teacher first. Students of another
    teacher or of other rows than their task's are left out.

    Raises:
        FilbertError: seeds of one student were made with different settings, a task is unknown or has no teacher.
    """
    found = [result for folder in _folders(metrics) if (result := _read(folder, details, only))]
    teachers = {result.task: result for result in found if result.student == TEACHER}
    order, kept = tasks.names(), []
    for result in found:
        if result.task not in order or result.task not in teachers:
            raise FilbertError(
                f"figures of {result.task}/{result.student}: no such task or no teacher; remove its folders or run `dvc repro`"
            )
        _check_seeds(result)
        if different := _difference(result, teachers[result.task]):
            progress.log(
                f"{result.task}/{result.student} is left out of the table: made with another {different} than the teacher"
            )
        else:
            kept.append(result)
    return sorted(kept, key=lambda result: (order.index(result.task), result.student != TEACHER, result.student))


def require_rows(found: list[StudentResults], details: Path) -> None:
    """Raises FilbertError where test rows are missing, without which a student has no interval."""
    for each in found:
        if not each.predictions:
            folder = details / each.task / each.student
            raise FilbertError(f"{folder}: expected test rows (.parquet) of the seeds {each.seeds}; run `dvc repro`")


def _folders(metrics: Path) -> list[Path]:
    """The folders of all students of all tasks."""
    return [
        folder
        for task in sorted(metrics.iterdir())
        if task.is_dir()
        for folder in sorted(task.iterdir())
        if folder.is_dir()
    ]


def _read(folder: Path, details: Path, only: set[Key] | None) -> StudentResults | None:
    """The results in one folder; None where it has none of those wanted."""
    task, student = folder.parent.name, folder.name
    files = sorted(folder.glob("[0-9]*.json"), key=lambda file: int(file.stem))
    files = [file for file in files if only is None or (task, student, int(file.stem)) in only]
    if not files:
        return None
    seeds = tuple(int(file.stem) for file in files)
    figures, more = list(map(read_json, files)), [read_json(details / task / student / file.name) for file in files]
    if (file := folder.parent / LATENCY).exists():
        figures, more = _with_latency(student, figures, more, read_json(file))
    rows = tuple(details / task / student / f"{seed}.parquet" for seed in seeds)
    kept = rows if all(file.exists() for file in rows) else ()
    return StudentResults(task, student, seeds, tuple(figures), tuple(more), kept)


def _with_latency(
    student: str, figures: list[dict[str, Any]], details: list[dict[str, Any]], measured: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Figures and details with what the `latency` stage measured of this student, once for all seeds."""
    if not all(student in arms for arms in measured["milliseconds"].values()):
        return figures, details
    found = _of_student(measured["milliseconds"], student)
    protocol = {name: measured[name] for name in ("tokens", "threads", "machine")} | {"latency": found.pop("latency")}
    return [each | found for each in figures], [each | protocol for each in details]


def _of_student(latencies: dict[str, Any], student: str) -> dict[str, Any]:
    """From all latencies of a task what belongs to one student: `milliseconds` and `faster` than the teacher by batch, and under
    `latency` the times of teacher and student, and of the student with its reference at hand."""
    arms = {"teacher": TEACHER, "student": student, "reference at hand": f"{student}: reference at hand"}
    latency = {
        size: {arm: times[name] for arm, name in arms.items() if name in times} for size, times in latencies.items()
    }
    return {
        "milliseconds": {f"batch_{n}": times["student"]["median"] for n, times in latency.items()},
        "faster": {f"batch_{n}": t["teacher"]["median"] / t["student"]["median"] for n, t in latency.items()},
        "latency": latency,
    }


def _check_seeds(result: StudentResults) -> None:
    """Refuse seeds of one student that were made with different settings, teachers or rows."""
    where = f"{result.task}/{result.student}"
    made = [{"teacher": d["teacher"], **d["provenance"], **dict.fromkeys(SEED_KEYS)} for d in result.details]
    for seed, provenance in zip(result.seeds, made, strict=True):
        for name, expected in made[0].items():
            if provenance.get(name) != expected:
                raise FilbertError(
                    f"figures of {where}, seed {seed}: made with {name} = {provenance.get(name)}, seed {result.seeds[0]} with "
                    f"{expected}; they cannot stand in one table. Run `dvc repro`, or remove the stale files of {where}"
                )


def _difference(result: StudentResults, teacher: StudentResults) -> str:
    """What a stale result has of another teacher or of other rows than its task's; empty where it fits."""
    ours, teachers = result.details[0], teacher.details[0]
    if ours["teacher"] != teachers["teacher"]:
        return "teacher"
    return "choice of rows" if ours["provenance"]["rows"] != teachers["provenance"]["rows"] else ""


def nearest_label_scores(metrics: Path, results: list[StudentResults]) -> dict[str, float]:
    """By task the score of predicting each test row by the label of its nearest training row alone.

    Raises:
        FilbertError: it was measured on other rows than the task's teacher.
    """
    scores: dict[str, float] = {}
    for result in results:
        file = metrics / result.task / "references.json"
        if result.student == TEACHER and file.exists():
            control, rows = read_json(file), result.details[0]["provenance"]["rows"]
            if control["rows"] != rows:
                raise FilbertError(
                    f"{file}: made with rows = {control['rows']}, the teacher of the task with {rows}; run `dvc repro`"
                )
            tests = [score for name, score in control["neighbours"].items() if name.startswith("test")]
            scores |= {result.task: statistics.mean(tests)} if tests else {}  # none of tagged rows
    return scores


def pareto_points(results: list[StudentResults]) -> list[dict[str, Any]]:
    """One point per task, student and seed, for the Pareto picture and `dvc plots`."""
    return [
        {
            "task": result.task,
            "student": result.student,
            "seed": seed,
            "score": round(score, 3),
            "parameters": figures["parameters"],
            "multiply_adds": figures["multiply_adds"],
            "milliseconds": figures["milliseconds"]["batch_1"],
        }
        for result in results
        for seed, score, figures in zip(result.seeds, result.scores, result.figures, strict=True)
    ]


def validation_curves(results: list[StudentResults]) -> Iterator[dict[str, Any]]:
    """The validation scores of every training run, step by step."""
    for result in results:
        for seed, details in zip(result.seeds, result.details, strict=True):
            run = {"run": f"{result.task}/{result.student}/{seed}", "task": result.task, "student": result.student}
            yield from (run | point for point in details["curve"])


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as CSV; empty where there are none."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()
