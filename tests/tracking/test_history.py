"""What is read of a history."""

from pathlib import Path

import pytest

from filbert.tracking.history import still_rising, to_text

LOSS = {"phase": "train", "step": 4, "time": 0.0, "loss": 0.5}


def scored(phase: str, *scores: float) -> list[dict]:
    return [{"phase": phase, "step": 5 * i, "time": 0.0, "validation_score": score} for i, score in enumerate(scores)]


@pytest.mark.parametrize(
    ("lines", "rises"),
    [
        (scored("train", 0.5, 0.7, 0.8), True),
        (scored("train", 0.5, 0.8, 0.7), False),
        (scored("train", 0.5, 0.8, 0.8), False),  # no better than before
        (scored("train", 0.5, 0.8, 0.7) + scored("labels", 0.6, 0.65), True),  # the last phase decides
        (scored("train", 0.5, 0.8) + scored("labels", 0.6, 0.55), False),
        ([], False),
    ],
)
def test_training_that_ended_while_validation_rose(lines: list[dict], rises: bool, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(to_text([*lines, LOSS]))
    assert still_rising(file) is rises
