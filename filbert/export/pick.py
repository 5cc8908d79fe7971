"""Which exported file to take: the best on validation rows within a budget, the Pareto front, and what a baseline dominates.

A candidate is one file of one model that all its seeds have, or a baseline; scores and sizes are means over seeds. Size is all
that has to be deployed; time is from text to answer, one text of median length, of the first seed's file beside all others and the
baselines (stages/latency.py).
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from filbert import FilbertError
from filbert.evaluation.results import LATENCY
from filbert.export.folder import NAMES
from filbert.runtime.config import TEACHER

RECORDS, BASELINES = "exported", "baselines.json"  # beside the figures of a task's students


@dataclass(frozen=True)
class Candidate:
    """One thing that can be deployed."""

    name: str
    file: str  # float32 or int8; empty of a baseline
    validation: float  # in points
    test: float  # in points; never chosen by
    bytes: float
    milliseconds: float
    folders: tuple[Path, ...] = ()  # of the seeds, the best on validation rows first

    @property
    def label(self) -> str:
        return f"{self.name} {self.file}".strip()

    @property
    def is_baseline(self) -> bool:
        return not self.folders or self.name == TEACHER


@dataclass(frozen=True)
class Budget:
    """What a choice must keep to; None: anything."""

    max_mb: float | None = None
    max_ms: float | None = None
    min_share: float | None = None  # of the teacher's float32 score

    def allows(self, candidate: Candidate, teacher: float | None) -> bool:
        return (
            (self.max_mb is None or candidate.bytes <= 1e6 * self.max_mb)
            and (self.max_ms is None or candidate.milliseconds <= self.max_ms)
            and (self.min_share is None or teacher is None or candidate.validation >= self.min_share * teacher)
        )


def load_candidates(
    metrics: Path, exported: Path, task: str, only: Collection[tuple[str, int]] | None = None
) -> list[Candidate]:
    """All files exported for a task, and its baselines, the best first; none where nothing was exported.

    Args:
        metrics: the folder of all figures: `TASK/exported/STUDENT/SEED.json`, `TASK/latency.json` and `TASK/baselines.json` are
            read.
        exported: the folder of all exports.
        only: these students and seeds, beside the teacher; None: all.

    Raises:
        FilbertError: a record cannot be read, or a file was not timed.
    """
    groups: dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]] = {}
    seeds_of: Counter[str] = Counter()
    for record in map(_read, sorted((metrics / task / RECORDS).glob("*/*.json"))):
        name, seed = record["student"], record["seed"]
        if name == TEACHER or only is None or (name, seed) in only:
            seeds_of[name] += 1
            for file, figures in record["files"].items():
                groups.setdefault((name, file), []).append((exported / task / name / str(seed), figures))
    groups = {key: seeds for key, seeds in groups.items() if len(seeds) == seeds_of[key[0]]}
    baselines = _read(metrics / task / BASELINES) if (metrics / task / BASELINES).is_file() else {}
    wanted = [*(f"{name}/{file}" for name, file in groups), *baselines]
    timed = _read(metrics / task / LATENCY).get("texts", {}).get("1", {}) if wanted else {}
    if missing := [name for name in wanted if name not in timed]:
        raise FilbertError(
            f"{metrics / task / LATENCY}: expected times of {', '.join(missing)}, found none; run `make repro`"
        )
    found = [
        _candidate(name, NAMES.get(file, file), seeds, timed[f"{name}/{file}"]["median"])
        for (name, file), seeds in groups.items()
    ]
    found += [_candidate(name, "", [(None, figures)], timed[name]["median"]) for name, figures in baselines.items()]
    return sorted(found, key=lambda candidate: (-candidate.validation, candidate.milliseconds))


def exported_models(params: dict[str, Any], task: str) -> set[tuple[str, int]] | None:
    """The students and seeds that a run with these params exports; None, all, for a task that is not among its."""
    models = {(name, seed) for name in params["exports"] for seed in params["seeds"]}
    return models if task in params["tasks"] else None


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FilbertError(f"{file}: expected JSON as a stage writes it, got {error}; run `make repro`") from error


def _candidate(
    name: str, file: str, seeds: Sequence[tuple[Path | None, dict[str, Any]]], milliseconds: float
) -> Candidate:
    best_first = sorted(seeds, key=lambda seed: -seed[1]["validation"]["score"])
    tests = [[100 * s["score"] for split, s in figures.items() if split.startswith("test")] for _, figures in seeds]
    return Candidate(
        name, file, mean(100 * figures["validation"]["score"] for _, figures in seeds), mean(map(mean, tests)),
        mean(figures["bytes"] for _, figures in seeds), milliseconds,
        tuple(folder for folder, _ in best_first if folder),
    )  # fmt: skip


def teacher_score(candidates: Sequence[Candidate]) -> float | None:
    """The validation score of the teacher in float32; None where it was not exported."""
    return next((c.validation for c in candidates if c.name == TEACHER and c.file == "float32"), None)


def pick(candidates: Sequence[Candidate], budget: Budget, student: str = "") -> Candidate:
    """The exported model, or that of one student, with the best validation score within a budget; of equals the faster.

    Raises:
        FilbertError: none is within it, or a share is wanted and no teacher was exported.
    """
    teacher = teacher_score(candidates)
    if budget.min_share is not None and teacher is None:
        raise FilbertError("--min-share: expected an exported teacher to take a share of, found none")
    models = [candidate for candidate in candidates if candidate.folders and student in ("", candidate.name)]
    if not models:
        wanted = f"models of {student}" if student else "models"
        raise FilbertError(
            f"expected exported {wanted}, found none; list students under `exports` in params.yaml, run `make repro`"
        )
    fitting = [candidate for candidate in models if budget.allows(candidate, teacher)]
    if not fitting:
        least = min(models, key=lambda c: c.bytes), min(models, key=lambda c: c.milliseconds)
        raise FilbertError(
            f"no model is within {_described(budget)}; the smallest is {least[0].label} with {least[0].bytes / 1e6:.1f} MB, the "
            f"fastest {least[1].label} with {least[1].milliseconds:.2f} ms, the best {models[0].label} with "
            f"{models[0].validation:.1f} points"
        )
    return min(fitting, key=lambda c: (-c.validation, c.milliseconds, c.bytes))


def _described(budget: Budget) -> str:
    said = {"max_mb": "{:g} MB", "max_ms": "{:g} ms", "min_share": "{:.0%} of the teacher's score and more"}
    return ", ".join(text.format(value) for name, text in said.items() if (value := getattr(budget, name)) is not None)


def dominated_by(candidates: Sequence[Candidate]) -> dict[str, str]:
    """By the label of a student's file the baseline that is at least as good in test score, size and time, the best of them."""
    baselines = sorted((c for c in candidates if c.is_baseline), key=lambda c: -c.test)
    return {
        c.label: next(b.label for b in baselines if _at_least_as_good(b, c, "test"))
        for c in candidates
        if not c.is_baseline and any(_at_least_as_good(b, c, "test") for b in baselines)
    }


def _at_least_as_good(one: Candidate, other: Candidate, score: str) -> bool:
    better = getattr(one, score) >= getattr(other, score)
    return better and one.bytes <= other.bytes and one.milliseconds <= other.milliseconds


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in score, size and time at once, the best score first."""
    return [
        c for c in candidates
        if not any(_at_least_as_good(o, c, "validation") and not _at_least_as_good(c, o, "validation") for o in candidates)
    ]  # fmt: skip


def table_rows(candidates: Sequence[Candidate]) -> list[tuple[str, ...]]:
    """All candidates as rows of a table, the first its head: what is on the front is marked, who dominates a student is named."""
    front, beaten = pareto_front(candidates), dominated_by(candidates)

    def remark(c: Candidate) -> str:
        if c.label in beaten:
            return f"dominated by {beaten[c.label]}"
        return ", ".join(["baseline"] * c.is_baseline + ["front"] * (c in front))

    return [
        ("model", "validation", "test", "MB", "ms", "remark"),
        *((c.label, f"{c.validation:.1f}", f"{c.test:.1f}", f"{c.bytes / 1e6:.2f}", f"{c.milliseconds:.2f}", remark(c))
          for c in candidates),
    ]  # fmt: skip


def draw_front(candidates: Sequence[Candidate], file: Path) -> None:
    """Score against size and against time, both on logarithmic axes, baselines hollow, the front named."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "filbert"
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    front = pareto_front(candidates)
    for panel, (name, scale, label) in zip(
        panels, (("bytes", 1e-6, "MB"), ("milliseconds", 1, "ms a text")), strict=True
    ):
        for c in candidates:
            at = getattr(c, name) * scale, c.validation
            panel.plot(*at, "o", color="tab:blue", fillstyle="none" if c.is_baseline else "full")
            if c in front:
                panel.annotate(c.label, at, fontsize=7, xytext=(4, 3), textcoords="offset points")
        panel.set_xscale("log")
        panel.set_xlabel(label)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("validation score")
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(figure)
