"""The files as runs: trainings, evaluations, and for each task and student the aggregate of its seeds."""

import statistics
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from filbert import compared
from filbert.figures import TEACHER, Line
from filbert.files import read_json
from filbert.report import ReportConfig, verdicts
from filbert.runs import Record, now
from filbert.tracking import flat, points_of, read_history, steps

NAMED = ("task", "method", "seed")  # what names a training, after its stage


def trainings(folders: list[Path], lines: list[Line]) -> Iterator[Record]:
    """The trainings of all models under `folders`; their shapes are told where they were evaluated."""
    evaluated = {
        compared.identity(details["made_with"]): (details["shape"], figures["parameters"])
        for line in lines
        for details, figures in zip(line.details, line.figures, strict=True)
    }
    for file in sorted(file for folder in folders for file in folder.rglob("made_with.json")):
        made_with, history = read_json(file), file.with_name("history.jsonl")
        said = [
            line for line in read_history(history) if "/" not in line["phase"]
        ]  # the rest is told by an earlier student
        times = [round(1000 * line["time"]) for line in said] or [_time(file)]
        key = compared.identity(made_with)
        shape, parameters = evaluated.get(key, ({}, None))
        # made_with begins with what the run works on and the hashes of what it read; settings follow
        tags = dict(takewhile(lambda item: isinstance(item[1], str) and "/" not in item[0], made_with.items()))
        named = {name: made_with[name] for name in NAMED if name in made_with}
        settings = {name: value for name, value in made_with.items() if name not in tags}
        yield Record(
            name="/".join([made_with["stage"], *named.values()]),
            key=key,
            tags=tags,
            params=settings | named | compared.training(made_with) | (compared.shape(shape) if shape else {}),
            figures={"steps": steps(history)} | ({"parameters": parameters} if parameters else {}),
            start=min(times),
            end=max(times),
            points=[point for line in said for point in points_of(line)],
            rows=(made_with["task"], made_with["rows"]) if "rows" in made_with else None,
            folder=str(file.parent),
        )


def evaluations(lines: list[Line], metrics: Path) -> Iterator[Record]:
    """What was measured of every model, beside its teacher."""
    for line in lines:
        files = [metrics / line.task / line.student / f"{seed}.json" for seed in line.seeds]
        whole = statistics.mean(next(o for o in lines if (o.task, o.student) == (line.task, TEACHER)).scores)
        for seed, figures, details, file in zip(line.seeds, line.figures, line.details, files, strict=True):
            score, made_with = compared.score(figures), details["made_with"]
            named = {"task": line.task, "method": line.student, "seed": str(seed)}
            yield Record(
                name="/".join(["evaluate", *named.values()]),
                key=compared.identity("evaluate", named, made_with),
                tags={"stage": "evaluate", **named},
                params=named | compared.training(made_with) | compared.shape(details["shape"]),
                figures={"score": score, "of_teacher": 100 * score / whole}
                | compared.costs(figures)
                | flat({k: v for k, v in figures.items() if k.startswith(("test", "validation"))}),
                start=_time(file),
                end=_time(file),
                of=(compared.identity(made_with),),
            )


def aggregates(lines: list[Line], metrics: Path, config: ReportConfig) -> Iterator[Record]:
    """One run a task and student: mean and standard deviation of the score over seeds, medians of what it costs, verdicts."""
    every = {record.name: record for record in evaluations(lines, metrics)}
    for line in lines:
        seeds = {str(seed): every[f"evaluate/{line.task}/{line.student}/{seed}"] for seed in line.seeds}
        found = [record.figures for record in seeds.values()]
        first = next(iter(seeds.values()))
        costs = {name: statistics.median(f[name] for f in found) for name in compared.costs(line.figures[0])}
        means = {name: statistics.mean(f[name] for f in found) for name in ("score", "of_teacher")}
        deviation = {"score_std": statistics.stdev(line.scores)} if len(seeds) > 1 else {}
        rivals = [other for other in lines if other.task == line.task]
        yield Record(
            name=f"{line.task}/{line.student}",
            key=compared.identity("aggregate", line.task, line.student, [d["made_with"] for d in line.details]),
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
