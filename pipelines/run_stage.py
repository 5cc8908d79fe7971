"""One stage, run by DVC in this process: several at once, each with its own environment, its output line by line.

DVC lets a stage's command run without its lock, so that commands run side by side while what DVC does before and after them
(compare hashes, store results, write dvc.lock) goes one at a time.
"""

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dvc.stage.run
import psutil
from dvc.exceptions import ReproductionError
from dvc.lock import Lock, LockError
from dvc.repo import Repo

from pipelines.dvc_graph import Stage, StageError
from pipelines.fork_server import ForkServer

LOCKED = "acquire lock", "is busy, it is being blocked by"  # the failures of `dvc` that are worth another try
LAST_LINES = 15
BAR = re.compile(r"(?P<what>\S.*?):\s+(?P<percent>\d+)%\|")  # tqdm's
PREFECT_SERVER = "prefect.server.api.server:create_app"  # ends after its flow, which would wait for it for minutes
OnLine = Callable[[str], None]

logging.getLogger("dvc").setLevel(logging.CRITICAL)  # no bars and warnings between the stages' own lines
_cancelled = threading.Event()


def cores() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def thread_environment(stage: Stage, jobs: int) -> dict[str, str]:
    """The threads of a stage where `jobs` run at once: its share of the cores, all of them if it runs alone.

    Results depend on the number of threads in the last bits, so it depends on nothing else: not on what runs beside a stage.
    """
    return {"OMP_NUM_THREADS": str(cores() if stage.alone else max(1, cores() // jobs))}


def reproduce(
    stage: Stage,
    force: bool,
    folder: Path,
    env: dict[str, str],
    on_line: OnLine,
    pull: bool = False,
    forks: ForkServer | None = None,
) -> bool:
    """`dvc repro --single-item` with `env` where the environment does not set it already; whether something had to be done.

    Args:
        forks: of `folder`, to run stages in; they are processes of their own without it.

    Raises:
        StageError: its command failed, or DVC did.
    """
    added = {name: value for name, value in env.items() if name not in os.environ}
    while True:
        repo = _Repo(folder, on_line, forks)
        try:
            return bool(repo.reproduce(stage.name, single_item=True, force=force, pull=pull, run_env=added))
        except ReproductionError as error:
            if not isinstance(error.__cause__, LockError):
                raise StageError(str(error.__cause__ or error)) from error
        finally:
            repo.close()
        time.sleep(1)  # another process's DVC reads or writes its files


def dvc_command(folder: Path, *words: str, on_line: OnLine = lambda line: None) -> None:
    """Run one DVC command, again for as long as another process holds DVC's lock. Raises StageError."""
    while True:
        code, lines = _stream(["dvc", *words], on_line, cwd=folder)
        if not code:
            return
        if not any(phrase in line for line in lines for phrase in LOCKED):
            raise StageError(_failure(f"`dvc {' '.join(words)}`", code, lines))
        time.sleep(1)


@contextmanager
def stopping() -> Iterator[None]:
    """End the commands that are still running when the block is left by an error or a signal: nothing outlives it."""
    _cancelled.clear()
    try:
        yield
    except BaseException:
        _cancelled.set()
        _terminate_all()
        raise


def _terminate_all() -> None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if PREFECT_SERVER not in process.cmdline():
                process.terminate()


class _Lock(Lock):
    """DVC's lock of a repository. The threads of one process queue for it instead of polling a file twice a second, and whoever
    has it works in that folder: DVC looks for stages in the working directory."""

    threads = threading.Lock()

    def __init__(self, folder: Path, file: str) -> None:
        super().__init__(file, wait=True)
        self.folder = folder

    def lock(self) -> None:
        self.threads.acquire()
        try:
            super().lock()
        except BaseException:
            self.threads.release()
            raise
        self.before = Path.cwd()
        os.chdir(self.folder)

    def unlock(self) -> None:
        os.chdir(self.before)
        super().unlock()
        self.threads.release()


class _Repo(Repo):
    """DVC's repository; `on_line` is given what its stages' commands print."""

    lock: Any

    def __init__(self, folder: Path, on_line: OnLine, forks: ForkServer | None) -> None:
        super().__init__(str(folder))
        self.lock = _Lock(folder, self.lock.lockfile)
        self.on_line, self.forks = on_line, forks


def _run_command(stage: Any, dry: bool = False, run_env: dict[str, str] | None = None) -> None:
    """In place of DVC's own, which writes to the terminal."""
    options = dvc.stage.run.prepare_kwargs(stage, run_env)
    if stage.repo.forks:  # they are of this Python, and so is what a command beside them means by `python`
        here = str(Path(sys.executable).parent)
        options["env"]["PATH"] = os.pathsep.join([here, options["env"].get("PATH", os.defpath)])
    for command in [stage.cmd] if isinstance(stage.cmd, str) else stage.cmd:
        shell = ["/bin/sh", "-c", command]
        code, lines = _stream(shell, stage.repo.on_line, stage.repo.forks, cwd=options["cwd"], env=options["env"])
        if code:
            raise StageError(_failure(stage.addressing, code, lines))


dvc.stage.run.cmd_run = _run_command


def _stream(
    command: list[str], on_line: OnLine, forks: ForkServer | None = None, **options: Any
) -> tuple[int, deque[str]]:
    """Run a command; its exit status and last lines."""
    lines: deque[str] = deque(maxlen=LAST_LINES)
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8", errors="replace") as output:
        with open(writing, "wb") as ours:
            fork = forks.start(command[-1], options["env"], writing) if forks else None
            process = fork or subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=ours, stderr=subprocess.STDOUT, **options
            )
        if _cancelled.is_set():
            _terminate_all()
        for line in output:  # a carriage return ends a line, too: each state of a bar is one
            if text := line.rstrip():
                on_line(text)
                if not BAR.match(text):
                    lines.append(text)
        return process.wait(), lines


def _failure(what: str, code: int, lines: deque[str]) -> str:
    return "\n".join([f"{what} failed with exit status {code}", *lines])
