"""history.jsonl, the record of a training: one JSON line per logged step, with its phase, step, time, values and checksum."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

from filbert import FilbertError

NOT_VALUES = ("phase", "step", "time")  # keys of a line that are no values
Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


def read_history(file: Path) -> list[dict[str, Any]]:
    """The lines of a history.jsonl, without their checksums and without a last line that a kill cut off.

    Raises:
        FilbertError: another line is not as it was written.
    """
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [_parse(file, number, line) for number, line in enumerate(lines, 1)]


def _parse(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        if found.pop("crc") != _crc(found):
            raise ValueError("another checksum")
        return found
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise FilbertError(
            f"{file}, line {number}: expected a JSON object with the checksum of its values, got {line[:60]!r}; the file is "
            "damaged: remove its folder and run `dvc repro`"
        ) from error


def to_text(lines: list[dict[str, Any]]) -> str:
    """The content of a history.jsonl: a flipped bit in a digit is noticed by `crc`, of the line without it."""
    return "".join(json.dumps(line | {"crc": _crc(line)}) + "\n" for line in lines)


def _crc(line: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(line).encode())


def history_points(line: dict[str, Any]) -> list[Point]:
    """One point for each value of a line of the history."""
    milliseconds = round(1000 * line["time"])
    return [(f"{line['phase']}/{name}", float(v), milliseconds, line["step"]) for name, v in _values(line).items()]


def count_steps(file: Path) -> int:
    """The optimiser steps of all phases together."""
    return _most_of_each_phase(file, "step")


def step_budget(file: Path) -> int:
    """The optimiser steps that all phases were given: more than they took where one stopped early."""
    return _most_of_each_phase(file, "step", "budget")


def _most_of_each_phase(file: Path, *names: str) -> int:
    """The largest of these values in each phase, of all phases together."""
    most: dict[str, int] = {}
    for line in read_history(file):
        most[line["phase"]] = max(most.get(line["phase"], 0), *(line.get(name, 0) for name in names))
    return sum(most.values())


def validation_curve(file: Path) -> list[dict[str, Any]]:
    """The validation scores of a history: phase, step, score."""
    scored = (line for line in read_history(file) if "validation_score" in line)
    return [{"phase": line["phase"], "step": line["step"], "score": line["validation_score"]} for line in scored]


def still_rising(file: Path) -> bool:
    """Whether the best validation score of the last phase that has some is its last, or only, one: more steps may help."""
    curve = validation_curve(file)
    scores = [point["score"] for point in curve if point["phase"] == curve[-1]["phase"]]
    return bool(scores) and scores[-1] > max(scores[:-1], default=-math.inf)


def validation_figures(file: Path) -> dict[str, dict[str, float]]:
    """The score of the weights that were kept, as `validation`: the best of the last phase that was judged by rows and of those it
    was chosen among (train-0, train-1 of a teacher's seeds); empty where none was."""
    curve = [(point["phase"].partition("-")[0], point["score"]) for point in validation_curve(file)]
    return {"validation": {"score": max(s for phase, s in curve if phase == curve[-1][0])}} if curve else {}


def last_values(file: Path, phase: str) -> dict[str, float]:
    """The values of the last line of a phase; empty where it has none."""
    lines = [line for line in read_history(file) if line["phase"] == phase]
    return _values(lines[-1]) if lines else {}


def _values(line: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name not in NOT_VALUES}
