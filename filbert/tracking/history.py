"""history.jsonl, the record of a training: one JSON line per logged step, with its phase, step, time and values."""

import json
from pathlib import Path
from typing import Any

Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


def read_history(file: Path) -> list[dict[str, Any]]:
    """The lines of a history.jsonl; a last line cut off by a kill is left out."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def history_points(line: dict[str, Any]) -> list[Point]:
    """One point for each value of a line of the history."""
    values = ((name, v) for name, v in line.items() if name not in ("phase", "step", "time"))
    at, step = round(1000 * line["time"]), line["step"]
    return [(f"{line['phase']}/{name}", float(v), at, step) for name, v in values]


def count_steps(file: Path) -> int:
    """How many optimiser steps a history tells of, all phases together."""
    last: dict[str, int] = {}
    for line in read_history(file):
        last[line["phase"]] = max(line["step"], last.get(line["phase"], 0))
    return sum(last.values())


def validation_curve(file: Path) -> list[dict[str, Any]]:
    """The validation scores a history tells of: phase, step, score."""
    scored = (line for line in read_history(file) if "validation_score" in line)
    return [{"phase": line["phase"], "step": line["step"], "score": line["validation_score"]} for line in scored]


def last_values(file: Path, phase: str) -> dict[str, float]:
    """The last values a history tells of a phase; empty where it tells none."""
    lines = [line for line in read_history(file) if line["phase"] == phase]
    return {k: v for k, v in lines[-1].items() if k not in ("phase", "step", "time")} if lines else {}
