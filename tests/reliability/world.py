"""The graph of dvc.yaml at a tiny size, whose stages run in forked processes: one takes a second and can be killed or watched."""

import atexit
import contextlib
import hashlib
import json
import os
import runpy
import shutil
import sqlite3
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_config, tiny_tokenizer
from tiny_graph import environment, make_clone
from transformers import BertModel

CLOCKED = (
    "latency",
    "export",
    "baselines",
    "report",
)  # stages whose outputs hold times: their files are compared by name
TIMES = ("time", "rows_per_second", "tokens_per_second")  # fields of a line of a history
GRAPH = """
import json
from pathlib import Path
from dvc.repo import Repo
from pipelines.dvc_graph import graph
stages = {stage.addressing: stage for stage in Repo().index.stages}
print(json.dumps([[s.name, stages[s.name].cmd.split()[2:], list(s.outs), list(s.plain), s.appends,
                   [str(d.def_path) for d in stages[s.name].deps if str(d.def_path).startswith("data")]]
                  for s in graph(Path.cwd(), [])]))
"""


@dataclass(frozen=True)
class Step:
    """One stage of the graph: its module and arguments, what it writes and reads."""

    name: str
    command: tuple[str, ...]
    outs: tuple[str, ...]
    plain: tuple[str, ...]  # outs that are figures in git
    appends: bool
    deps: tuple[str, ...]

    @property
    def clocked(self) -> bool:
        """Whether its outputs hold times."""
        return self.name.startswith(CLOCKED)


@dataclass
class Done:
    """How a stage ended."""

    code: int  # negative: the signal that ended it
    said: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """What it said but for progress bars and warnings."""
        lines = [line.strip() for line in self.said.replace("\r", "\n").splitlines()]
        return [line for line in lines if line and "%|" not in line and "Warning" not in line and "rows/s" not in line]


@dataclass(frozen=True)
class Running:
    """A stage that runs in a process of its own."""

    pid: int
    output: int  # a descriptor

    def wait(self) -> tuple[int, str]:
        """Its exit code, or the signal that ended it as a negative number, and what it said."""
        with open(self.output, "rb") as stream:
            said = stream.read().decode(errors="replace")
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), said


@dataclass
class World:
    """The tiny graph in a folder, run once; `pristine` has a copy of what it made."""

    folder: Path
    steps: list[Step]
    pristine: Path
    reference: dict[str, dict[str, str]] = field(default_factory=dict)  # by step, hashes of what it made
    seconds: dict[str, float] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)  # failpoints that a run of the step passes

    @classmethod
    def build(cls, folder: Path) -> "World":
        """A clone with a tiny checkpoint, whose stages have not been run."""
        torch.manual_seed(0)
        BertModel(tiny_config()).save_pretrained(folder / "checkpoint")
        tiny_tokenizer().save_pretrained(folder / "checkpoint")
        clone = folder / "clone"
        clone.mkdir()
        make_clone(clone, folder / "checkpoint")
        found = subprocess.run(
            [sys.executable, "-c", GRAPH], cwd=clone, env=environment(), capture_output=True, text=True, check=True
        )
        steps = [Step(name, tuple(command), tuple(outs), tuple(plain), appends, tuple(deps))
                 for name, command, outs, plain, appends, deps in json.loads(found.stdout)]  # fmt: skip
        for module in {step.command[0] for step in steps}:
            import_module(module)  # forked stages begin at once
        import mlflow.transformers  # noqa: F401

        return cls(clone, steps, folder / "pristine")

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def run(
        self, step: Step, before: Callable[[], Any] = lambda: None, watch: Callable[[int], Any] = lambda pid: None
    ) -> Done:
        """Run a stage to its end; `before` is called in its process, `watch` with the number of its process."""
        started, running = time.monotonic(), self.start(step, before)
        watch(running.pid)
        code, said = running.wait()
        return Done(code, said, time.monotonic() - started)

    def start(self, step: Step, before: Callable[[], Any] = lambda: None) -> "Running":
        """Start a stage in a process of its own."""
        output, written = os.pipe()
        if pid := os.fork():
            os.close(written)
            return Running(pid, output)
        code = 70
        try:
            atexit._clear()  # what the campaign itself removes at its end
            for descriptor in (1, 2):
                os.dup2(written, descriptor)
            os.chdir(self.folder)
            sys.argv = [step.command[0], *step.command[1:]]
            before()
            runpy.run_module(step.command[0], run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
        raise AssertionError

    def remove(self, step: Step) -> None:
        """Remove the outputs of a step, as DVC does before it runs it."""
        for out in step.outs:
            path = self.folder / out
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def keep(self) -> None:
        """Copy what was made to `pristine`."""
        shutil.copytree(self.folder, self.pristine, symlinks=True, dirs_exist_ok=True)

    def restore(self, *paths: str) -> None:
        """Bring paths of the clone back as they were."""
        for path in paths:
            here, there = self.folder / path, self.pristine / path
            shutil.rmtree(here) if here.is_dir() else here.unlink(missing_ok=True)
            if there.is_dir():
                shutil.copytree(there, here)
            elif there.exists():
                shutil.copy2(there, here)

    def hashes(self, step: Step) -> dict[str, str]:
        """A hash of each file that a step wrote, without times; of stages whose outputs hold times the names alone."""
        found = {}
        for out in map(self.folder.joinpath, step.outs):
            for file in sorted(path for path in out.rglob("*") if path.is_file()) if out.is_dir() else [out]:
                name = str(file.relative_to(self.folder))
                found[name] = "" if step.clocked or file.name == "HASHES.json" else _hash(file)
        return found

    def orphans(self) -> list[str]:
        """What should not be there when no stage runs: unfinished files, and state of stages that are done."""
        unfinished = [path for top in ("data", "docs") for path in (self.folder / top).rglob(".filbert-*")]
        state = [path for path in (self.folder / ".scratch").rglob("*") if path.is_file() and path.suffix != ".lock"]
        return [str(path.relative_to(self.folder)) for path in unfinished + state]

    def running(self) -> int:
        """The stages that MLflow takes to be running."""
        query = "SELECT count(*) FROM runs JOIN tags USING (run_uuid) WHERE status='RUNNING' AND key='stage' AND value!='pipeline'"
        with contextlib.closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            return int(store.execute(query).fetchone()[0])


def _hash(file: Path) -> str:
    content = file.read_bytes()
    if file.name == "history.jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        content = json.dumps([{k: v for k, v in line.items() if k not in TIMES} for line in lines]).encode()
    return hashlib.sha256(content).hexdigest()
