"""params.yaml is read strictly, and every section of the real one builds its dataclass."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from filbert.data import tasks
from filbert.runtime import config
from filbert.runtime.config import Fraction, PositiveInt, Range


@dataclass(frozen=True)
class Inner:
    rate: float
    kind: Literal["a", "b"]


@dataclass(frozen=True)
class Outer:
    inner: Inner
    layers: tuple[int, ...]
    name: str | None


GOOD = "s: {inner: {rate: 1.0e-5, kind: a}, layers: [1, 2], name: null}"


def read(tmp_path: Path, text: str) -> Outer:
    (tmp_path / "params.yaml").write_text(text)
    return config.section("s", Outer, tmp_path / "params.yaml")


def test_a_section_becomes_its_dataclass(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == Outer(Inner(1e-5, "a"), (1, 2), None)
    assert read(tmp_path, GOOD.replace("1.0e-5", "2")).inner.rate == 2.0  # a whole number is a number


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: null", "name: null, extra: 1", "s: unknown key `extra`"),
        (", name: null", "", "s: missing key `name`"),
        ("rate: 1.0e-5", "rate: fast", "s.inner.rate: expected float, got 'fast'"),
        ("rate: 1.0e-5", "rate: true", "s.inner.rate: expected float, got True"),  # a bool is no number
        ("kind: a", "kind: c", "s.inner.kind: expected 'a' or 'b', got 'c'"),
        ("[1, 2]", "[1, x]", "s.layers[1]: expected int, got 'x'"),
        ("{rate: 1.0e-5, kind: a}", "7", "s.inner: expected a section with rate, kind, got 7"),
        ("s:", "t:", "no `s` in the top level"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(config.ConfigError) as error:
        read(tmp_path, GOOD.replace(old, new))
    assert said in str(error.value)


class Color(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Numbers:
    count: PositiveInt
    share: Fraction
    rate: Annotated[float, Range(0, above=True)]
    color: Color
    optional: PositiveInt | None = None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{count: 0, share: 0.5, rate: 1.0, color: red}", "s.count: expected a number of at least 1, got 0"),
        (
            "{count: 1, share: 1.5, rate: 1.0, color: red}",
            "s.share: expected a number of at least 0 and at most 1, got 1.5",
        ),
        ("{count: 1, share: 0, rate: 0, color: red}", "s.rate: expected a number of more than 0, got 0.0"),
        ("{count: 1, share: .nan, rate: 1, color: red}", "s.share: expected float, got nan"),
        ("{count: 1, share: 0, rate: .inf, color: red}", "s.rate: expected float, got inf"),
        ("{count: 1, share: 0, rate: 1, color: blue}", "s.color: expected 'red', got 'blue'"),
        (
            "{count: 1, share: 0, rate: 1, color: red, optional: -1}",
            "s.optional: expected a number of at least 1, got -1",
        ),
    ],
)
def test_numbers_have_their_ranges(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "params.yaml").write_text(f"s: {text}")
    with pytest.raises(config.ConfigError, match=re.escape(said)):
        config.section("s", Numbers, tmp_path / "params.yaml")


def test_a_field_with_a_default_may_be_absent(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("s: {count: 1, share: 0, rate: 1, color: red}")
    assert config.section("s", Numbers, tmp_path / "params.yaml") == Numbers(1, 0.0, 1.0, Color.RED)


@dataclass(frozen=True)
class Phase:
    DEFAULTS: ClassVar[str] = "training"

    epochs: float
    rate: float


@dataclass(frozen=True)
class OnePhase:
    weight: float
    training: Phase


@dataclass(frozen=True)
class TwoPhases:
    first: Phase
    second: Phase
    third: Phase | None


PHASES = "training: {epochs: 2, rate: 0.1}\nsettings:\n"


def test_a_phase_is_completed_from_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(PHASES + "  a: {weight: 1}\n  b: {weight: 1, training: {rate: 0.3}}")
    assert config.section("settings.a", OnePhase, file) == OnePhase(1.0, Phase(2.0, 0.1))
    assert config.section("settings.b", OnePhase, file).training == Phase(2.0, 0.3)


def test_a_key_training_of_a_section_holds_for_all_its_phases(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(PHASES + "  a: {training: {epochs: 5}, first: {rate: 0.7}, third: null}")
    assert config.section("settings.a", TwoPhases, file) == TwoPhases(Phase(5.0, 0.7), Phase(5.0, 0.1), None)


def test_a_variant_is_laid_over_its_method(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(PHASES + "  kd: {weight: 1, training: {epochs: 3}}\n  mine: {training: {rate: 0.5}}")
    merged = config.section(["settings.kd", "settings.mine"], OnePhase, file)
    assert merged == OnePhase(1.0, Phase(3.0, 0.5))
    assert config.section(["settings.kd", "settings.unknown"], OnePhase, file).training == Phase(3.0, 0.1)


def test_an_unknown_key_of_a_phase_is_named(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(PHASES + "  a: {weight: 1, training: {rates: 0.3}}")
    with pytest.raises(config.ConfigError, match=r"settings\.a\.training: unknown key `rates`; known are epochs, rate"):
        config.section("settings.a", OnePhase, file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: 1\nb: [1, 2\n", r"params.yaml, line 3: "),
        (b"a: 1\nb: 2\na: 3\n", r"params.yaml, line 3: found duplicate key \"a\""),
        (b"a: caf\xe9\n", r"params.yaml: expected UTF-8, got byte 0xe9 at 6"),
        (b"- 1\n", "params.yaml: expected a mapping of sections, got list"),
    ],
)
def test_a_broken_file_is_named_by_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(config.ConfigError, match=said):
        config.section("a", dict[str, int], tmp_path / "params.yaml")


def test_every_row_of_the_task_table_builds() -> None:
    assert [tasks.find(name).name for name in tasks.names()] == list(config.read_params()["task_table"])
