"""One stage, run by DVC: its output streams into the flow's log, its progress bar into an artifact."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from pipelines.artifacts import Progress
from pipelines.graph import Stage, StageError

LOCKED = "acquire lock", "is busy, it is being blocked by"  # the one failure worth another try: another DVC is at it
LAST_LINES = 15


@task(cache_policy=NO_CACHE, task_run_name="{stage.name}")
def run_stage(stage: Stage, needs: list[None], force: bool, folder: Path, env: dict[str, str]) -> None:
    """Run one stage in `folder`; `needs` are the tasks before it."""
    reproduce(stage, force, folder, env)


def reproduce(stage: Stage, force: bool, folder: Path, env: dict[str, str], *more: str) -> None:
    """`dvc repro --single-item`: nothing happens where nothing has changed."""
    dvc(folder, "repro", "--single-item", stage.name, *(["--force"] if force else []), *more, env=env)


def dvc(folder: Path, *words: str, env: dict[str, str] | None = None) -> None:
    """Run one DVC command, again for as long as another process holds DVC's lock. Raises StageError."""
    while True:
        code, lines = _stream(["dvc", *words], folder, (env or {}) | os.environ)
        if not code:
            return
        if not any(phrase in line for line in lines for phrase in LOCKED):
            last = "\n".join(lines[-LAST_LINES:])
            raise StageError(f"`dvc {' '.join(words)}` failed with exit status {code}:\n{last}")
        time.sleep(1)


def _stream(command: list[str], folder: Path, env: dict[str, str]) -> tuple[int, list[str]]:
    log, lines, progress = get_run_logger(), [], Progress()
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    for line in process.stdout:  # a carriage return ends a line, too: each state of a bar is one
        if text := line.rstrip():
            lines.append(text)
            log.info(text)
            progress.see(text)
    return process.wait(), lines


@contextmanager
def stopping() -> Iterator[None]:
    """End the stages that are still running when the flow is cancelled: nothing of it outlives it."""
    try:
        yield
    except BaseException:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        raise
