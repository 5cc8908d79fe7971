"""The files as runs: trainings, evaluations, and for each task and student the aggregate of its seeds."""

import statistics
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from filbert.evaluation.results import TEACHER, StudentResults
from filbert.evaluation.statistics import ReportConfig
from filbert.evaluation.tables import verdicts
from filbert.runtime.files import read_json
from filbert.tracking import run_fields
from filbert.tracking.history import count_steps, history_points, read_history
from filbert.tracking.mlflow_store import RunRecord, now
from filbert.tracking.recording import flatten

NAMED = ("task", "method", "seed")  # what names a training, after its stage


def trainings(folders: list[Path], lines: list[StudentResults]) -> Iterator[RunRecord]:
    """The trainings of all models under `folders`; their shapes are told where they were evaluated."""
    evaluated = {
        run_fields.run_key(details["provenance"]): (details["shape"], figures["parameters"])
        for line in lines
        for details, figures in zip(line.details, line.figures, strict=True)
    }
    for file in sorted(file for folder in folders for file in folder.rglob("provenance.json")):
        provenance, history = read_json(file), file.with_name("history.jsonl")
        said = [
            line for line in read_history(history) if "/" not in line["phase"]
        ]  # the rest is told by an earlier student
        times = [round(1000 * line["time"]) for line in said] or [_time(file)]
        key = run_fields.run_key(provenance)
        shape, parameters = evaluated.get(key, ({}, None))
        # provenance begins with what the run works on and the hashes of what it read; settings follow
        tags = dict(takewhile(lambda item: isinstance(item[1], str) and "/" not in item[0], provenance.items()))
        named = {name: provenance[name] for name in NAMED if name in provenance}
        settings = {name: value for name, value in provenance.items() if name not in tags}
        yield RunRecord(
            name="/".join([provenance["stage"], *named.values()]),
            key=key,
            tags=tags,
            params=settings
            | named
            | run_fields.training_fields(provenance)
            | (run_fields.shape_fields(shape) if shape else {}),
            figures={"steps": count_steps(history)} | ({"parameters": parameters} if parameters else {}),
            start=min(times),
            end=max(times),
            points=[point for line in said for point in history_points(line)],
            rows=(provenance["task"], provenance["rows"]) if "rows" in provenance else None,
            folder=str(file.parent),
        )


def evaluations(lines: list[StudentResults], metrics: Path) -> Iterator[RunRecord]:
    """What was measured of every model, beside its teacher."""
    for line in lines:
        files = [metrics / line.task / line.student / f"{seed}.json" for seed in line.seeds]
        whole = statistics.mean(next(o for o in lines if (o.task, o.student) == (line.task, TEACHER)).scores)
        for seed, figures, details, file in zip(line.seeds, line.figures, line.details, files, strict=True):
            score, provenance = run_fields.test_score(figures), details["provenance"]
            named = {"task": line.task, "method": line.student, "seed": str(seed)}
            yield RunRecord(
                name="/".join(["evaluate", *named.values()]),
                key=run_fields.run_key("evaluate", named, provenance),
                tags={"stage": "evaluate", **named},
                params=named | run_fields.training_fields(provenance) | run_fields.shape_fields(details["shape"]),
                figures={"score": score, "of_teacher": 100 * score / whole}
                | run_fields.cost_fields(figures)
                | flatten({k: v for k, v in figures.items() if k.startswith(("test", "validation"))}),
                start=_time(file),
                end=_time(file),
                of=(run_fields.run_key(provenance),),
            )


def aggregates(lines: list[StudentResults], metrics: Path, config: ReportConfig) -> Iterator[RunRecord]:
    """One run a task and student: mean and standard deviation of the score over seeds, medians of what it costs, verdicts."""
    every = {record.name: record for record in evaluations(lines, metrics)}
    for line in lines:
        seeds = {str(seed): every[f"evaluate/{line.task}/{line.student}/{seed}"] for seed in line.seeds}
        found = [record.figures for record in seeds.values()]
        first = next(iter(seeds.values()))
        costs = {name: statistics.median(f[name] for f in found) for name in run_fields.cost_fields(line.figures[0])}
        means = {name: statistics.mean(f[name] for f in found) for name in ("score", "of_teacher")}
        deviation = {"score_std": statistics.stdev(line.scores)} if len(seeds) > 1 else {}
        rivals = [other for other in lines if other.task == line.task]
        yield RunRecord(
            name=f"{line.task}/{line.student}",
            key=run_fields.run_key("aggregate", line.task, line.student, [d["provenance"] for d in line.details]),
            tags={
                "stage": "aggregate",
                "task": line.task,
                "method": line.student,
                "seeds": ", ".join(seeds),
                "verdict": "; ".join(map(str, verdicts(line, rivals, config))),
            },
            params={name: value for name, value in first.params.items() if name != "seed"},
            figures=means | deviation | costs,
            start=now(),
            end=now(),
            of=tuple(key for record in seeds.values() for key in record.of),
            seeds=seeds,
        )


def _time(file: Path) -> int:
    return round(1000 * file.stat().st_mtime)
