"""The graph of dvc.yaml at a tiny size, whose commands are forks of one process: a stage takes a second and can be killed."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preloaded import LIBRARIES, python_of
from reliability.failpoints import PASSED
from reliability.network import SITE
from ruamel.yaml import YAML
from tiny import ROOT
from tiny_graph import environment, make_clone

from pipelines.fork_server import ForkServer

LONGEST = 400  # seconds that a command may take
BLOCK = 4096  # bytes
CLOCKED = ("latency", "report")  # stages whose outputs hold times: their files are compared by name
TIMED = re.compile(
    r".*/HASHES.json|data/exported/.*/(config.json|export.json|README.md)|data/metrics/.*/exported/.*"
)  # likewise: files
INT8 = "model.int8.onnx"  # which variant is published, or none, is chosen by time
TIMES = ("time", "rows_per_second", "tokens_per_second", "crc")  # fields of a line of a history
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


@dataclass
class World:
    """The tiny graph in a folder, run once; `pristine` has a copy of what it made."""

    folder: Path
    steps: list[Step]
    pristine: Path
    forks: ForkServer
    env: dict[str, str]
    commit: str = ""  # whose code is in it
    reference: dict[str, dict[str, str]] = field(default_factory=dict)  # by step, hashes of what it made
    seconds: dict[str, float] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)  # failpoints that a run of the step passes

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def run(self, step: Step, **failpoint: object) -> Done:
        """Run a stage to its end; `failpoint` is what befalls it (failpoints.py)."""
        return self.command("-m", *step.command, failpoint={"stage": step.name} | failpoint, DVC_STAGE=step.name)

    def command(self, *words: str, failpoint: dict[str, Any] | None = None, **env: str) -> Done:
        """Run `python WORDS` to its end, and not for what it has left running."""
        told = {"FAILPOINTS": json.dumps(failpoint or {"stage": "none"})}
        with tempfile.TemporaryFile() as output:
            started, running = time.monotonic(), self.forks.fork(list(words), self.env | told | env, output.fileno())
            running.socket.settimeout(LONGEST)
            try:
                code = running.wait()
            except TimeoutError:
                code = 124
            output.seek(0)
            return Done(code, output.read().decode(errors="replace"), time.monotonic() - started)

    def make_reference(self) -> None:
        """Run the graph once; what it makes is the reference of all that follows, and DVC knows it."""
        for step in self.steps:
            done = self.run(step, count=True)
            assert done.code == 0, f"{step.name}: {done.code}\n{done.said}"
            self.points[step.name] = int(next(line for line in done.lines if line.startswith(PASSED)).split()[-1])
            self.reference[step.name], self.seconds[step.name] = self.hashes(step), done.seconds
        done = self.command("-m", "dvc", "commit", "--force", "--quiet")
        assert done.code == 0, done.said
        self.keep()

    def above(self, step: Step) -> set[str]:
        """The steps that a step needs, itself included."""
        found = {step.name}
        for other in self.steps:
            if other.name not in found and any(
                reads(step, out) or any(dep.startswith(f"{out}/") for dep in step.deps) for out in other.outs
            ):
                found |= self.above(other)
        return found

    def forget(self, steps: list[Step]) -> None:
        """DVC has not run some steps: it would run them. Where they append, nothing is there yet."""
        yaml, lock = YAML(typ="safe"), self.folder / "dvc.lock"
        known = yaml.load(lock)
        for step in steps:
            del known["stages"][step.name]
            if step.appends:
                self.remove(step)
        yaml.dump(known, lock)
        shutil.rmtree(self.folder / ".dvc" / "cache" / "runs", ignore_errors=True)

    @contextmanager
    def small_disk(self, room: int, step: Step) -> Iterator[Callable[[int], AbstractContextManager]]:
        """The world on a disk of its own (tmpfs, which root may mount), on which a step was not run and there is some room; a
        context in which only so much is left."""
        size = room + sum(2 * BLOCK + path.stat().st_size for path in self.pristine.rglob("*"))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.folder], check=True)
        try:
            shutil.copytree(self.pristine, self.folder, symlinks=True, dirs_exist_ok=True)
            self.remove(step)
            yield self._leaving
        finally:
            subprocess.run(["umount", "--lazy", self.folder], check=True)

    @contextmanager
    def _leaving(self, room: int) -> Iterator[None]:
        filler, disk = self.folder / "filler", os.statvfs(self.folder)
        with filler.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, max(BLOCK, disk.f_bavail * disk.f_frsize - room))
        try:
            yield
        finally:
            filler.unlink()

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
                found[name] = "" if step.clocked or TIMED.fullmatch(name) else _hash(file)
        return found

    def differing(self, step: Step) -> list[str]:
        """The files of a step that are other than in the reference."""
        found, expected = self.hashes(step), self.reference[step.name]
        differ = [name for name in sorted(found | expected) if found.get(name) != expected.get(name)]
        return [name for name in differ if not (name.endswith(INT8) and (name in found) != (name in expected))]

    def altered(self, step: Step) -> list[str]:
        """The files of a step that differ in any byte: of one that tells the times of what it reads."""
        files = [self.folder / name for name in self.hashes(step)]
        files = [
            file for file in files if file.read_bytes() != (self.pristine / file.relative_to(self.folder)).read_bytes()
        ]
        return [str(file.relative_to(self.folder)) for file in files]

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


def reads(step: Step, file: str) -> bool:
    """Whether a file is among what a step reads."""
    return any(file == dep or file.startswith(f"{dep}/") for dep in step.deps)


@contextmanager
def open_world(folder: Path, env: dict[str, str]) -> Iterator[World]:
    """The world in a folder: as an earlier campaign made it, or a new one, in which the graph is run once."""
    clone, pristine, record = folder / "clone", folder / "pristine", folder / "world.json"
    if not record.exists():
        shutil.rmtree(folder / "clone", ignore_errors=True)
        _make_clone(folder)
    found = subprocess.run(
        [sys.executable, "-c", GRAPH],
        cwd=pristine if record.exists() else clone,
        env=environment(),
        capture_output=True,
        check=True,
    )
    steps = [Step(name, tuple(command), tuple(outs), tuple(plain), appends, tuple(deps))
             for name, command, outs, plain, appends, deps in json.loads(found.stdout)]  # fmt: skip
    if record.exists():
        if clone.is_mount():  # a campaign was killed while its disk was full
            subprocess.run(["umount", "--lazy", clone], check=True)
        shutil.rmtree(clone)
        shutil.copytree(pristine, clone, symlinks=True)
    modules = sorted({step.command[0] for step in steps})
    with (
        tempfile.TemporaryDirectory(prefix="filbert-") as bin,
        ForkServer(
            clone,
            ("filbert", *LIBRARIES, "mlflow.transformers", *modules),
            env | {"FAILPOINTS": "", "PYTHONPATH": str(SITE)},
        ) as forks,
        python_of(forks, Path(bin)),
    ):
        world = World(clone, steps, pristine, forks, env | {"PYTHONPATH": str(SITE), "PATH": f"{bin}:{env['PATH']}"})
        if record.exists():
            world.commit, world.reference, world.seconds, world.points = json.loads(record.read_text())
        else:
            shutil.rmtree(pristine, ignore_errors=True)
            world.make_reference()
            described = ["git", "describe", "--always", "--dirty", "--exclude=*"]
            world.commit = subprocess.run(described, cwd=ROOT, capture_output=True, text=True).stdout.strip()
            record.write_text(json.dumps([world.commit, world.reference, world.seconds, world.points]))
        yield world


def _make_clone(folder: Path) -> None:
    """A clone with a tiny checkpoint, whose stages have not been run."""
    import torch
    from tiny import tiny_config, tiny_tokenizer
    from transformers import BertModel

    torch.manual_seed(0)
    BertModel(tiny_config()).save_pretrained(folder / "checkpoint")
    tiny_tokenizer().save_pretrained(folder / "checkpoint")
    (folder / "clone").mkdir()
    make_clone(folder / "clone", folder / "checkpoint")


def _hash(file: Path) -> str:
    content = file.read_bytes()
    if file.name == "history.jsonl":
        lines = [json.loads(line) for line in content.splitlines()]
        content = json.dumps([{k: v for k, v in line.items() if k not in TIMES} for line in lines]).encode()
    return hashlib.sha256(content).hexdigest()
