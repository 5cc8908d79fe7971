"""The tiny graph, run once for all tests that look at it."""

import shutil
from pathlib import Path

import pytest
from tiny_graph import REPRO, Shell, commit, make_clone, shell_in

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
    """Run a command in the clone, as a user does."""
    return shell_in(clone, python)


@pytest.fixture(scope="session")
def reproduced(clone: Path, shell: Shell) -> str:
    """What the first run of `make repro` prints."""
    done = shell(*REPRO)
    commit(clone)
    return done.stdout + done.stderr
