"""How any stage begins and ends: outputs checked, alone on them, inputs as they were written, one line where something is wrong."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import ROOT

from filbert.runtime import files, signals

STAGE = """
import errno, json, sys, time
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError, safe_open

from filbert.data import arrow
from filbert.runtime import files, signals
from stages import CacheFolder, OutFile, OutFolder, run


def stage(
    what: str, read: Path, out: OutFolder, figures: OutFile = Path("figures.json"), cache: CacheFolder = Path("cache")
) -> None:
    print("works", flush=True)
    if what == "arrow":
        arrow.read_table(read / "rows.arrow")
    elif what == "safetensors":
        safe_open(read / "rows.arrow", "numpy")
    elif what == "text":
        (read / "rows.arrow").read_text("utf-8")
    elif what == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "x.arrow")
    elif what == "cut":
        raise OSError(errno.EFBIG, "Error writing bytes to file. Detail: [errno 27]")
    elif what == "rust":
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    elif what == "tokenizers":
        raise Exception("No space left on device (os error 28)")
    elif what == "named":
        raise FileNotFoundError("students/1/references: no reference store")
    elif what == "fault":
        raise AssertionError("a fault of ours")
    with files.atomic_folder(out) as making:
        (making / "file").write_text(what)
        if what == "slow":
            time.sleep(60)
        if what == "train":
            with signals.held():
                for step in range(600):
                    time.sleep(0.1)
                    (making / "state").write_text(str(step))
                    if signals.received():
                        files.write_text(Path("saved"), "state")
                    signals.raise_received()
        if what == "first":
            while not Path(".scratch/go").exists():
                time.sleep(0.05)
    files.write_json(figures, {})


if __name__ == "__main__":
    run(stage)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stage.py").write_text(STAGE)
    with files.atomic_folder(tmp_path / "read") as making:
        (making / "rows.arrow").write_bytes(b"\xff\xfe rows")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str, str]:
    """As `start` and `end`, in this process: its exit code, what it printed, and what it said of errors."""
    found = importlib.util.spec_from_file_location("stage", "stage.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["stage", *words])
    monkeypatch.setattr(signals, "install", lambda: None)
    with pytest.raises(SystemExit) as ended:
        module.run(module.stage)
    out, said = capsys.readouterr()
    return ended.value.code, out, said.strip()


def start(here: Path, *words: str, **env: str) -> subprocess.Popen:
    command = [sys.executable, "stage.py", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.Popen(
        command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen) -> tuple[int, str, str]:
    out, said = process.communicate(timeout=60)
    return process.returncode, out, said.strip()


def listing(here: Path) -> set[str]:
    return {path.name for path in here.iterdir()} - {".scratch", "stage.py", "read", "__pycache__"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("", "read", "."),
            "stage: .: expected a folder of its own, which may be replaced; it holds the working directory",
        ),
        (
            ("", "read", ".."),
            "stage: ..: expected a folder of its own, which may be replaced; it holds the working directory",
        ),
        (
            ("", "read", "mine"),
            "stage: mine: expected a folder of its own, which may be replaced; it holds files that no stage",
        ),
        (
            ("", "read", "stage.py"),
            "stage: stage.py: expected a folder to write to, or none yet; found a file or a link",
        ),
        (("", "read", "link"), "stage: link: expected a folder to write to, or none yet; found a file or a link"),
        (
            ("", "read", "stage.py/out"),
            "stage: stage.py/out: cannot be written: stage.py: File exists; name another place",
        ),
        (
            ("", "read", "out", "--figures", "mine"),
            "stage: mine: expected a file to write to, or none yet; found another",
        ),
        (
            ("", "read", "out", "--cache", "link"),
            "stage: link: expected a folder to write to, or none yet; found a file or a",
        ),
        (("", "damaged", "out"), "stage: damaged/rows.arrow: expected what its stage wrote, XXH3 "),
    ],
    ids=lambda value: "-".join(value[1:]).replace("/", "_") if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_found_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: tuple[str, ...], said: str
) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").touch()
    (here / "link").symlink_to(here / "mine")
    with files.atomic_folder(here / "damaged") as making:
        (making / "rows.arrow").touch()
    (here / "damaged" / "rows.arrow").write_text("other")
    before = listing(here)
    code, worked, told = run_here(monkeypatch, capsys, *words)
    assert (code, worked) == (1, "")
    assert told.startswith(said)
    assert len(told.splitlines()) == 1
    assert listing(here) == before


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("arrow", "stage: read/rows.arrow: damaged: expected an Arrow file, got "),
        ("safetensors", "stage: SafetensorError: Error while deserializing header"),
        ("text", "stage: UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"),
        ("full", "stage: x.arrow: No space left on device; free some space and run it again"),
        ("rust", "stage: out or figures.json or cache: No space left on device; free some space and run it again"),
        (
            "tokenizers",
            "stage: out or figures.json or cache: No space left on device; free some space and run it again",
        ),
        ("cut", "stage: out or figures.json or cache: File too large; raise the limit of a file's size (ulimit -f)"),
        ("named", "stage: students/1/references: no reference store"),
    ],
)
def test_what_the_system_and_libraries_raise_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, what: str, said: str
) -> None:
    code, _, told = run_here(monkeypatch, capsys, what, "read", "out")
    assert code == 1
    assert told.startswith(said)
    assert len(told.splitlines()) == 1
    assert not listing(here)


def test_a_traceback_is_shown_on_demand_and_where_the_fault_is_ours(here: Path) -> None:
    assert "Traceback" in end(start(here, "arrow", "read", "out", FILBERT_DEBUG="1"))[2]
    assert "Traceback" in end(start(here, "fault", "read", "out"))[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["slow", "train"])
def test_a_signal_ends_a_stage_cleanly(here: Path, what: str, number: signal.Signals) -> None:
    """`train` is in a step, which is finished and saved."""
    running = start(here, what, "read", "out")
    assert running.stdout is not None
    running.stdout.readline()
    time.sleep(0.3)
    running.send_signal(number)
    running.send_signal(number)  # a second one does not disturb the cleaning up
    code, _, told = end(running)
    assert code == 128 + number
    assert told == f"stage: stopped by {number.name}; the same command goes on where it was"
    assert listing(here) == ({"saved"} if what == "train" else set())  # nothing temporary


def test_a_second_process_waits_for_the_first(here: Path) -> None:
    first = start(here, "first", "read", "out")
    assert first.stdout is not None
    first.stdout.readline()
    second = start(here, "again", "read", "out")
    assert second.stderr is not None
    assert second.stderr.readline() == "out: another process is making it; waiting for its end\n"
    (here / ".scratch/go").touch()
    assert end(second)[0] == end(first)[0] == 0
    assert (here / "out" / "file").read_text() == "again"
    assert listing(here) == {"out", "figures.json"}


def test_what_a_killed_process_left_is_gone_after_the_next(here: Path) -> None:
    running = start(here, "slow", "read", "out")
    assert running.stdout is not None
    running.stdout.readline()
    time.sleep(0.3)
    running.kill()
    running.communicate()
    assert len(listing(here)) == 1
    assert end(start(here, "again", "read", "out"))[0] == 0
    assert listing(here) == {"out", "figures.json"}
