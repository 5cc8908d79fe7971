"""The graph of dvc.yaml, several stages at once, without a server: what `make repro` runs.

As `dvc repro`, it runs what has changed and nothing else. A stage that fails stops what depends on it; the others finish.
Results are repeatable bit for bit on the same type of processor with the same number of jobs and of cores, which decide the
threads of a stage.
"""

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two busy processes with spinning threads slow each other down

import typer
from dvc.exceptions import DvcException

from filbert import FilbertError
from pipelines.dvc_graph import Stage, StageError, find_changed
from pipelines.fork_server import ForkServer
from pipelines.run_stage import BAR, cores, reproduce, stopping, thread_environment

BAR_SECONDS = 10.0  # from one line about a stage's progress to the next


class Printer:
    """Lines of several stages on one terminal: each whole, with its stage's name; of a progress bar one in a while."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def line(self, stage: Stage, text: str) -> None:
        with self.lock:
            print(f"{time.strftime('%H:%M:%S')} {stage.name}: {text}", flush=True)

    def output(self, stage: Stage) -> "Output":
        return Output(self, stage)


@dataclass
class Output:
    """What a stage's command prints."""

    printer: Printer
    stage: Stage
    shown: float = field(default_factory=time.monotonic)  # when a line of it was
    last: str = ""

    def __call__(self, text: str) -> None:
        now, is_bar = time.monotonic(), bool(BAR.match(text))
        if now - self.shown >= BAR_SECONDS if is_bar else text != self.last:
            self.shown, self.last = now, self.last if is_bar else text
            self.printer.line(self.stage, text)


@dataclass
class Run:
    """A run of some stages; `seconds` has those that had something to do, `failed` those that failed and why."""

    folder: Path
    stages: list[Stage]
    jobs: int
    env: dict[str, str]
    printer: Printer = field(default_factory=Printer)
    seconds: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.forks = ForkServer(self.folder)

    def __call__(self) -> None:
        """Run them, up to `jobs` at once."""
        waiting = {stage.name: stage for stage in self.stages}
        running: dict[Future[None], Stage] = {}
        with self.forks, ThreadPoolExecutor(self.jobs) as pool, stopping():
            while waiting or running:
                unfinished = waiting.keys() | {stage.name for stage in running.values()} | self.failed.keys()
                ready = [stage for stage in waiting.values() if unfinished.isdisjoint(stage.needs)]
                for stage in startable(ready, list(running.values()), self.jobs, depths(self.stages)):
                    running[pool.submit(self.reproduce, waiting.pop(stage.name))] = stage
                if not running:
                    break  # the others need one that failed
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    self.finish(running.pop(future), future)
        for stage in waiting.values():
            self.printer.line(stage, "not run, for it needs what failed")

    def reproduce(self, stage: Stage) -> None:
        start, env = time.monotonic(), self.env | thread_environment(stage, self.jobs)
        self.printer.line(stage, "starts")
        if reproduce(stage, False, self.folder, env, self.printer.output(stage), forks=self.forks):
            self.seconds[stage.name] = time.monotonic() - start

    def finish(self, stage: Stage, future: Future[None]) -> None:
        if not (error := future.exception()):
            took = self.seconds.get(stage.name)
            self.printer.line(stage, "nothing has changed" if took is None else f"done, {took:.1f} s")
        elif isinstance(error, StageError):
            self.failed[stage.name] = str(error)
            self.printer.line(stage, "FAILED")
        else:
            raise error


def depths(stages: list[Stage]) -> dict[str, int]:
    """For each stage the number of stages in the longest chain that needs it, but for those that run alone."""
    found = {stage.name: 0 for stage in stages}
    for stage in reversed(stages):
        for need in found.keys() & set(stage.needs):
            found[need] = max(found[need], found[stage.name] + (not stage.alone))
    return found


def startable(ready: list[Stage], running: list[Stage], jobs: int, depth: dict[str, int]) -> list[Stage]:
    """Those that start now: the longest chains first; one that runs alone when nothing else can run."""
    together = sorted((stage for stage in ready if not stage.alone), key=lambda stage: -depth[stage.name])
    if any(stage.alone for stage in running):
        return []
    return together[: jobs - len(running)] if together or running else ready[:1]


def critical_path(stages: list[Stage], seconds: dict[str, float]) -> list[str]:
    """The chain of stages that takes longest: no number of jobs makes the run shorter."""
    paths: dict[str, tuple[float, list[str]]] = {}
    for stage in stages:
        length, path = max((paths[need] for need in stage.needs if need in paths), default=(0.0, []))
        here = seconds.get(stage.name, 0.0)
        paths[stage.name] = (length + here, [*path, stage.name] if here else path)
    return max(paths.values(), default=(0.0, []))[1]


def time_table(stages: list[Stage], seconds: dict[str, float], wall: float, jobs: int) -> str:
    """Where the time went."""
    width = max(map(len, seconds))
    lines = [f"{name:{width}}  {took:8.1f}" for name, took in sorted(seconds.items(), key=lambda item: -item[1])]
    path = critical_path(stages, seconds)
    return "\n".join([
        f"{'stage':{width}}   seconds", *lines,
        f"{'sum':{width}}  {sum(seconds.values()):8.1f}",
        f"{f'wall, {jobs} at once':{width}}  {wall:8.1f}",
        f"{'longest chain':{width}}  {sum(seconds[name] for name in path):8.1f}",
        f"({' > '.join(path)})",
    ])  # fmt: skip


def terminal_tables(folder: Path, stages: Iterable[Stage]) -> str:
    """The text files among the outs of `stages`: tables for a terminal."""
    files = [folder / out for stage in stages for out in stage.outs if out.endswith(".txt")]
    return "\n".join(file.read_text(encoding="utf-8").rstrip() for file in files if file.exists())


def run(folder: Path, targets: list[str], jobs: int, env: dict[str, str]) -> bool:
    """Run what has changed of the graph of `folder`, print where the time went and the result; whether all went well."""
    start = time.monotonic()
    stages, changed = find_changed(folder, targets)
    run = Run(folder, changed, jobs, {"FILBERT_PIPELINE": uuid.uuid4().hex} | env)
    if changed:
        threads = os.environ.get("OMP_NUM_THREADS", max(1, cores() // jobs))
        print(
            f"{len(changed)} of {len(stages)} stages to check or run, {jobs} at once, threads of each: {threads}",
            flush=True,
        )
        run()
    wall = time.monotonic() - start
    if run.seconds:
        print(f"\n{time_table(changed, run.seconds, wall, jobs)}\n")
    elif not run.failed:
        print(f"nothing has changed: {len(stages)} stages, {wall:.1f} s\n")
    print("\n\n".join(run.failed.values()) or terminal_tables(folder, stages))
    return not run.failed


@contextmanager
def ending_in_one_line(command: str) -> Iterator[None]:
    """Errors of the user's and signals end the process with a message instead of a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated; the next run goes on"))
    try:
        yield
    except (DvcException, FilbertError, StageError) as error:
        sys.exit(f"{command}: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the next run goes on")


def main(
    targets: Annotated[list[str] | None, typer.Argument(help="stages, with or without @instance; all if none")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="stages at once; each gets its share of the cores")] = 2,
) -> None:
    """Run what has changed of DVC's graph here, several stages at once."""
    with ending_in_one_line("repro"):
        ok = run(Path.cwd(), targets or [], jobs, {})
    raise typer.Exit(0 if ok else 1)


if __name__ == "__main__":
    typer.run(main)
