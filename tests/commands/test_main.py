"""The command `filbert`: it lists the commands, runs them, and names them where another was asked for."""

import sys

import pytest

from commands.__main__ import main, names


def test_every_command_is_listed_with_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["filbert"])
    main()
    said = capsys.readouterr().out
    assert {"add-task", "pick", "predict", "release", "restore-mlflow", "serve"} == set(names())
    for name in names():
        line = next(line for line in said.splitlines() if line.startswith(f"  {name} "))
        assert len(line.split()) > 5


def test_a_command_gets_its_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["filbert", "pick", "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert "--max-mb" in capsys.readouterr().out


def test_an_unknown_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["filbert", "distil"])
    with pytest.raises(SystemExit, match=r"expected one of add-task, pick, .*, got distil"):
        main()
