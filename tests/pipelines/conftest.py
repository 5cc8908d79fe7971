"""The tiny graph, run once for all tests that look at it."""

import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_graph import REPRO, Shell, commit, environment, make_clone

from filbert.tracking.mlflow_store import STORE


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, empty_store: Path) -> Path:
    """This repository with a tiny checkpoint and a tiny task, not yet run."""
    folder = tmp_path_factory.mktemp("clone")
    make_clone(folder, checkpoint)
    shutil.copy(empty_store, folder / STORE)
    return folder


@pytest.fixture(scope="session")
def shell(clone: Path, python: Path) -> Shell:
    """Run a command in the clone, as a user does; `python`, and so each stage, starts at once (tests/preloaded.py)."""

    def run(*command: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess:
        words, env = ["python", "-m", "dvc"] if command[0] == "dvc" else [command[0]], environment(**env)
        env["PATH"] = f"{python.parent}:{env['PATH']}"
        done = subprocess.run([*words, *command[1:]], cwd=clone, env=env, capture_output=True, text=True)
        assert (done.returncode == 0) == ok, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def reproduced(clone: Path, shell: Shell) -> str:
    """What the first run of `make repro` prints."""
    done = shell(*REPRO)
    commit(clone)
    return done.stdout + done.stderr
