"""MLflow runs made from the files: of each training, of each evaluation, and of each student the aggregate over its seeds."""

import math
import statistics
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from filbert.evaluation.comparisons import compare
from filbert.evaluation.results import TEACHER, StudentResults
from filbert.evaluation.statistics import ReportConfig
from filbert.runtime.files import read_json
from filbert.tracking import run_fields
from filbert.tracking.history import count_steps, history_points, read_history
from filbert.tracking.mlflow_store import RunRecord, now
from filbert.tracking.run_recorder import flatten

NAME_TAGS = ("task", "method", "seed")  # name a training, after its stage


def trainings(folders: list[Path], results: list[StudentResults]) -> Iterator[RunRecord]:
    """The trainings of all models under `folders`; their shapes are taken from the results of their evaluation."""
    evaluated = {
        run_fields.run_key(details["provenance"]): (details["shape"], figures["parameters"])
        for result in results
        for details, figures in zip(result.details, result.figures, strict=True)
    }
    for file in sorted(file for folder in folders for file in folder.rglob("provenance.json")):
        yield _training(file, *evaluated.get(run_fields.run_key(read_json(file)), ({}, None)))


def _training(file: Path, shape: dict[str, Any], parameters: int | None) -> RunRecord:
    """The training whose provenance is in `file`."""
    provenance, history = read_json(file), file.with_name("history.jsonl")
    lines = [
        line for line in read_history(history) if "/" not in line["phase"]
    ]  # others are of the student it started from
    times = [round(1000 * line["time"]) for line in lines] or [_modified(file)]
    # provenance begins with what the run works on and the hashes of what it read; settings follow
    tags = dict(takewhile(lambda item: isinstance(item[1], str) and "/" not in item[0], provenance.items()))
    named = {name: provenance[name] for name in NAME_TAGS if name in provenance}
    settings = {name: value for name, value in provenance.items() if name not in tags}
    figures: dict[str, float] = {"steps": count_steps(history), **({"parameters": parameters} if parameters else {})}
    shown = run_fields.training_fields(provenance) | (run_fields.shape_fields(shape) if shape else {})
    return RunRecord(
        name="/".join([provenance["stage"], *named.values()]),
        key=run_fields.run_key(provenance),
        tags=tags,
        params=settings | named | shown,
        figures=figures,
        start=min(times),
        end=max(times),
        points=[point for line in lines for point in history_points(line)],
        rows=(provenance["task"], provenance["rows"]) if "rows" in provenance else None,
        folder=str(file.parent),
    )


def evaluations(results: list[StudentResults], metrics: Path) -> Iterator[RunRecord]:
    """The evaluation of every model, with its score in percent of its teacher's."""
    teachers = {result.task: statistics.mean(result.scores) for result in results if result.student == TEACHER}
    for result in results:
        for seed, figures, details in zip(result.seeds, result.figures, result.details, strict=True):
            score, provenance = run_fields.test_score(figures), details["provenance"]
            named = {"task": result.task, "method": result.student, "seed": str(seed)}
            time = _modified(metrics / result.task / result.student / f"{seed}.json")
            yield RunRecord(
                name="/".join(["evaluate", *named.values()]),
                key=run_fields.run_key("evaluate", named, provenance),
                tags={"stage": "evaluate", **named},
                params=named | run_fields.training_fields(provenance) | run_fields.shape_fields(details["shape"]),
                figures={"score": score, "of_teacher": 100 * score / (teachers[result.task] or math.nan)}
                | run_fields.cost_fields(figures)
                | flatten({k: v for k, v in figures.items() if k.startswith(("test", "validation"))}),
                start=time,
                end=time,
                measures=(run_fields.run_key(provenance),),
            )


def aggregates(results: list[StudentResults], metrics: Path, config: ReportConfig) -> Iterator[RunRecord]:
    """One run per task and student: mean and standard deviation of the score over seeds, median costs, comparisons."""
    evaluated = {record.name: record for record in evaluations(results, metrics)}
    comparisons = {
        task: compare([result for result in results if result.task == task], config)
        for task in {result.task for result in results}
    }
    for result in results:
        seeds = {str(seed): evaluated[f"evaluate/{result.task}/{result.student}/{seed}"] for seed in result.seeds}
        figures = [record.figures for record in seeds.values()]
        first = next(iter(seeds.values()))
        costs = {
            name: statistics.median(f[name] for f in figures) for name in run_fields.cost_fields(result.figures[0])
        }
        means = {name: statistics.mean(f[name] for f in figures) for name in ("score", "of_teacher")}
        deviation = {"score_std": statistics.stdev(result.scores)} if len(seeds) > 1 else {}
        yield RunRecord(
            name=f"{result.task}/{result.student}",
            key=run_fields.run_key("aggregate", result.task, result.student, [d["provenance"] for d in result.details]),
            tags={
                "stage": "aggregate",
                "task": result.task,
                "method": result.student,
                "seeds": ", ".join(seeds),
                "verdict": "; ".join(map(str, comparisons[result.task][result.student])),
            },
            params={name: value for name, value in first.params.items() if name != "seed"},
            figures=means | deviation | costs,
            start=now(),
            end=now(),
            measures=tuple(key for record in seeds.values() for key in record.measures),
            seeds=seeds,
        )


def _modified(file: Path) -> int:
    """When a file was written, in milliseconds since 1970."""
    return round(1000 * file.stat().st_mtime)
