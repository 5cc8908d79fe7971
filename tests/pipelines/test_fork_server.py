"""A stage in a fork: its arguments, environment, output and exit status are those of a process of its own."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.fork_server import LIGHT, ForkServer

STAGE = """
import os, sys, time
print(*sys.argv[1:], os.environ["WHO"], os.environ.get("ONLY_HERE"), flush=True)
if sys.argv[1] == "sleep":
    time.sleep(60)
if sys.argv[1] == "fail":
    sys.exit("what went wrong")
"""


@pytest.fixture
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForkServer]:
    """A server in a folder whose stages do next to nothing."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "one.py").write_text(STAGE)
    monkeypatch.setenv("ONLY_HERE", "1")
    with ForkServer(tmp_path, preloaded=("stages",)) as server:
        yield server


def run(forks: ForkServer, command: str, **env: str) -> tuple[int, str]:
    """The exit status and the output of a command."""
    reading, writing = os.pipe()
    found = forks.start(command, {"WHO": "me", "PATH": os.environ["PATH"]} | env, writing)
    os.close(writing)
    assert found is not None
    with open(reading) as output:
        said = output.read()
    return found.wait(), said


def test_arguments_environment_output_and_status_are_the_commands_own(forks: ForkServer) -> None:
    assert run(forks, "python -m stages.one a 'b c'") == (0, "a b c me None\n")
    assert run(forks, "python -m stages.one d", WHO="you", OMP_NUM_THREADS="2") == (0, "d you None\n")
    assert run(forks, "python -m stages.one fail") == (1, "fail me None\nwhat went wrong\n")
    code, said = run(forks, "python -m stages.two")
    assert code == 1
    assert "No module named stages.two" in said


def test_what_is_no_stage_is_not_run(forks: ForkServer) -> None:
    for command in ("echo python -m stages.one", "accelerate launch -m stages.one", "python -m commands.pick"):
        assert forks.start(command, {}, 1) is None
    assert forks.process is not None
    assert psutil.Process(forks.process.pid).children() == []


def test_a_light_stage_does_not_wait_while_the_server_imports(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\n")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "fetch.py").write_text(STAGE)
    with ForkServer(tmp_path, preloaded=("slow",)) as forks:
        assert forks.start("python -m stages.fetch a", {}, 1) is None
        (tmp_path / "go").touch()
        assert forks.connection is not None
        select.select([forks.connection], [], [], 60)
        assert run(forks, "python -m stages.fetch a") == (0, "a me None\n")


def test_a_run_that_ends_while_the_server_imports_ends_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(60)\n")
    with ForkServer(tmp_path, preloaded=("slow",)) as forks:
        pass
    assert forks.process is not None
    assert forks.process.poll() == -signal.SIGKILL
    assert capfd.readouterr().err == ""


def test_light_stages_import_no_large_library() -> None:
    names = ", ".join(LIGHT)
    code = f"import sys, {names}; sys.exit(', '.join({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_fork_that_is_killed_leaves_the_others_alone(forks: ForkServer, number: signal.Signals) -> None:
    reading, writing = os.pipe()
    slow = forks.start("python -m stages.one sleep", {"WHO": "me"}, writing)
    os.close(writing)
    with open(reading) as output:
        assert output.readline() == "sleep me None\n"
        assert forks.process is not None
        psutil.Process(forks.process.pid).children()[0].send_signal(number)
        assert output.read() == ""
    assert slow is not None
    assert slow.wait() == -number
    assert run(forks, "python -m stages.one again") == (0, "again me None\n")


def test_a_server_that_is_killed_is_started_anew(forks: ForkServer) -> None:
    assert run(forks, "python -m stages.one a")[0] == 0
    assert forks.process is not None
    forks.process.kill()
    forks.process.wait()
    assert run(forks, "python -m stages.one b") == (0, "b me None\n")
