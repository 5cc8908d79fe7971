"""What is read of a history, and that damage to it is refused."""

from pathlib import Path

import pytest

from filbert import FilbertError
from filbert.tracking.history import read_history, still_rising, to_text, validation_figures

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
        (scored("train", 0.5), True),  # judged once: nothing tells that it had stopped rising
        ([], False),
    ],
)
def test_training_that_ended_while_validation_rose(lines: list[dict], rises: bool, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(to_text([*lines, LOSS]))
    assert still_rising(file) is rises


@pytest.mark.parametrize(
    ("lines", "best"),
    [
        (scored("train-0", 0.5, 0.8) + scored("train-1", 0.5, 0.7), 0.8),  # of a teacher's seeds the best is kept
        (scored("width", 0.9) + scored("distill", 0.6, 0.7, 0.65), 0.7),  # what another phase made is gone
    ],
)
def test_the_validation_score_is_that_of_the_weights_that_were_kept(
    lines: list[dict], best: float, tmp_path: Path
) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(to_text([*lines, LOSS]))
    assert validation_figures(file) == {"validation": {"score": best}}
    file.write_text(to_text([LOSS]))
    assert validation_figures(file) == {}


def test_a_history_torn_in_the_middle_is_refused(tmp_path: Path) -> None:
    file, whole = tmp_path / "history.jsonl", to_text([LOSS])
    for torn in ('{"phase": "tr\n', "[1]\n", "1\n", '{"phase": "train", "step": 1, "time": 1.0}\n', "\n"):
        file.write_text(whole + torn + whole)
        with pytest.raises(FilbertError, match=r"history.jsonl, line 2: expected a JSON object with the checksum"):
            read_history(file)
    file.write_text(whole + '{"phase": "tr')
    assert read_history(file) == [LOSS]


def test_no_flipped_bit_tells_another_history(tmp_path: Path) -> None:
    """It is refused, or tells the same: a bit of the 17th digit of a loss can do that."""
    file, lines = (
        tmp_path / "history.jsonl",
        [LOSS, {"phase": "train", "step": 8, "time": 1.25, "loss": 0.1 + 0.2}, LOSS],
    )
    content = to_text(lines).encode()
    first, middle = (content.index(b"\n") + 1, content.rindex(b"\n", 0, -1) + 1)
    refused = 0
    for bit in range(8 * first, 8 * middle):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            assert read_history(file) == lines
        except FilbertError as error:
            refused += "history.jsonl, line 2: " in str(error)
    assert refused > 8 * (middle - first) - 20
