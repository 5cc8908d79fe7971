"""What befalls a stage: it is killed at a moment or at a failpoint, its inputs are damaged, the disk is full, it is not alone."""

import atexit
import itertools
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reliability.world import Done, Step, World

from filbert.cache.shards import ShardFolder
from filbert.tracking.run_recorder import RunRecorder
from filbert.training import loop

POINTS: tuple[tuple[Any, str], ...] = ((os, "replace"), (os, "rename"), (ShardFolder, "write"), (RunRecorder, "log"))
PASSED = "failpoints passed:"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "a flipped bit": lambda content, draw: _flip(content, draw.randrange(8 * len(content))) if content else b"\1",
    "cut in half": lambda content, draw: content[: len(content) // 2],
    "zeros": lambda content, draw: bytes(len(content)) if any(content) else b"\1",
    "empty": lambda content, draw: b"" if content else b"\1",
    "deleted": lambda content, draw: None,
}


def _flip(content: bytes, bit: int) -> bytes:
    at = bit // 8
    return content[:at] + bytes([content[at] ^ 1 << bit % 8]) + content[at + 1 :]


@dataclass(frozen=True)
class Case:
    """One thing that was tried, and how it ended; `wrong` is empty where all is well."""

    kind: str
    what: str
    outcome: str
    wrong: str = ""


# ------------------------------------------------------------------------------------------------------------------- kills


def failpoint(at: int, after: bool, number: signal.Signals) -> None:
    """From now on, this process gets a signal before or after its `at`-th rename, replacement, manifest or line of a history."""
    count = itertools.count(1)

    def watched(call: Callable) -> Callable:
        def with_failpoint(*words: object, **named: object) -> object:
            here = next(count) == at
            if here and not after:
                os.kill(os.getpid(), number)
            result = call(*words, **named)
            if here and after:
                os.kill(os.getpid(), number)
            return result

        return with_failpoint

    for owner, name in POINTS:
        setattr(owner, name, watched(getattr(owner, name)))


def count_points() -> None:
    """At its end, this process says how many failpoints it has passed."""
    count = itertools.count()

    def counted(call: Callable) -> Callable:
        def with_count(*words: object, **named: object) -> object:
            next(count)
            return call(*words, **named)

        return with_count

    for owner, name in POINTS:
        setattr(owner, name, counted(getattr(owner, name)))
    atexit.register(lambda: print(f"{PASSED} {next(count)}", flush=True))


def save_each_step() -> None:
    """State is saved after each step of a training, so that each can be gone on from."""
    (loop.fit.__kwdefaults__ or {})["checkpoint_seconds"] = 0.0


def kill(world: World, step: Step, draw: random.Random) -> Case:
    """Kill a step up to three times, at drawn moments or failpoints, let it end, and compare with the run that was not killed."""
    kills, problems, cleanly = [], [], True
    if step.appends or draw.random() < 0.5:
        world.remove(step)
    for _ in range(draw.randint(1, 3)):
        number = draw.choice(SIGNALS)
        if draw.random() < 0.5:
            point, after = draw.randint(1, max(1, world.points[step.name])), draw.random() < 0.5
            kills.append(f"{number.name} {'after' if after else 'before'} point {point}")

            def prepare(point: int = point, after: bool = after, number: signal.Signals = number) -> None:
                save_each_step()
                failpoint(point, after, number)

            done = world.run(step, prepare)
        else:
            delay = draw.random() * world.seconds[step.name]
            kills.append(f"{number.name} at {delay:.2f} s")

            def send(pid: int, number: signal.Signals = number, delay: float = delay) -> None:
                time.sleep(delay)
                os.kill(pid, number)

            done = world.run(step, save_each_step, send)
        cleanly &= number is not signal.SIGKILL
        problems += [f"{kills[-1]}: {wrong}" for wrong in _ended_well(done, number)]
        if done.code not in (0, -number) and cleanly and world.running():
            problems.append(f"{kills[-1]}: MLflow takes it to be running")
    done = world.run(step)
    problems += _as_before(world, step, done)
    if problems:
        world.restore(*step.outs, ".scratch", "mlflow.db")
    return Case(
        "kill", f"{step.name}: {', '.join(kills)}", "survived" if not problems else "not survived", "; ".join(problems)
    )


def _ended_well(done: Done, number: signal.Signals) -> Iterator[str]:
    """It was killed, or stopped with one line and a shell's code, or had ended before; a signal may come before it can answer."""
    if done.code in (0, -number):
        return
    if number is signal.SIGKILL or done.code != 128 + number:
        yield f"exit code {done.code}: {' / '.join(done.lines[-3:])}"
    elif not done.lines or f"stopped by {number.name}" not in done.lines[-1] or "Traceback" in done.said:
        yield f"it said: {' / '.join(done.lines[-3:])}"


def _as_before(world: World, step: Step, done: Done) -> Iterator[str]:
    if done.code:
        yield f"the last run ended with {done.code}: {' / '.join(done.lines[-3:])}"
        return
    if (found := world.hashes(step)) != (expected := world.reference[step.name]):
        other = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        yield f"other outputs: {other[:3]}"
    if left := world.orphans():
        yield f"left behind: {left[:3]}"


def two_at_once(world: World, step: Step) -> Case:
    """Two processes make one output: both end well, one after the other."""
    world.remove(step)
    ended = [running.wait() for running in [world.start(step) for _ in range(2)]]
    codes, said = [code for code, _ in ended], "\n".join(text for _, text in ended)
    problems = list(_as_before(world, step, Done(max(codes), said, 0.0)))
    if "another process is making it" not in said:
        problems.append("neither waited")
    return Case("two at once", step.name, "one waited" if not problems else "wrong", "; ".join(problems))


# ------------------------------------------------------------------------------------------------------------------ damage


def damage(world: World, step: Step, file: str, kind: str, draw: random.Random) -> Case:
    """Damage a file that `step` wrote; the stage that reads it names the file, or what it makes is as without the damage."""
    reader = min((each for each in world.steps if reads(each, file)), key=lambda each: world.seconds[each.name])
    before = (world.folder / file).read_bytes()
    after = DAMAGES[kind](before, draw)
    _write(world.folder / file, after)
    done = world.run(reader)
    outcome, wrong = _found(world, reader, file, done)
    world.restore(file, *(reader.outs if done.code == 0 else ()), *([".scratch"] if world.orphans() else []))
    return Case(f"damage: {kind}", f"{file}, read by {reader.name}", outcome, wrong)


def reads(step: Step, file: str) -> bool:
    return any(file == dep or file.startswith(f"{dep}/") for dep in step.deps)


def _write(file: Path, content: bytes | None) -> None:
    file.unlink()
    if content is not None:
        file.write_bytes(content)


def _found(world: World, reader: Step, file: str, done: Done) -> tuple[str, str]:
    """The outcome of reading a damaged file, and what is wrong with it."""
    told = done.lines[-1] if done.lines else ""
    if done.code == 0:
        same = world.hashes(reader) == world.reference[reader.name]
        return ("no harm", "") if same else ("used", "what was made of it is another, and nothing was said")
    if "Traceback" in done.said:
        return "refused", f"a traceback: {told}"
    folder = str(Path(file).parent)
    return ("named", "") if file in told or folder in told else ("refused", f"the file is not named: {told}")


def damaged_state(world: World, step: Step, kind: str, draw: random.Random) -> list[Case]:
    """Kill a step late, damage each file of its state in turn, and let it go on: it ends as if nothing had been."""
    world.remove(step)
    point = max(1, world.points[step.name] - 4)

    def prepare() -> None:
        save_each_step()
        failpoint(point, False, signal.SIGKILL)

    world.run(step, prepare)
    state, kept, cases = world.folder / ".scratch", world.folder.parent / "state", []
    shutil.copytree(state, kept, dirs_exist_ok=True)
    names = sorted(
        str(path.relative_to(state)) for path in state.rglob("*") if path.is_file() and path.suffix != ".lock"
    )
    for name in names:
        shutil.rmtree(state)
        shutil.copytree(kept, state)
        world.remove(step)
        _write(state / name, DAMAGES[kind]((state / name).read_bytes(), draw))
        done = world.run(step)
        named = done.code == 1 and done.lines and Path(name).name in done.lines[-1] and "Traceback" not in done.said
        problems = [] if named else [each for each in _as_before(world, step, done) if ".damaged" not in each]
        outcome = "named" if named else "repaired"
        cases.append(
            Case(
                f"state: {kind}",
                f".scratch/{name} of {step.name}",
                "wrong" if problems else outcome,
                "; ".join(problems),
            )
        )
    shutil.rmtree(kept)
    world.restore(".scratch", *step.outs)
    return cases


def damaged_settings(world: World, kind: str, draw: random.Random) -> Case:
    """Damage params.yaml: a stage refuses it and names it, or reads the same from it."""
    step, file = world.step("prepare@sst2"), world.folder / "params.yaml"
    content = file.read_bytes()
    file.write_bytes(DAMAGES[kind](content, draw) or b"") if kind != "deleted" else file.unlink()
    done = world.run(step)
    told = done.lines[-1] if done.lines else ""
    if done.code == 0:
        wrong = "" if world.hashes(step) == world.reference[step.name] else "what was made is another"
    else:
        wrong = "" if "params.yaml" in told and "Traceback" not in done.said else f"not named: {told}"
    file.write_bytes(content)
    world.restore(*step.outs)
    return Case(f"settings: {kind}", "params.yaml", "no harm" if done.code == 0 else "named", wrong)


# ---------------------------------------------------------------------------------------------------------------- disk full


def disk_full(world: World, step: Step, draw: random.Random) -> Case:
    """No file may grow over a drawn size: one line, nothing half-written; with room again the stage ends as before."""
    world.remove(step)
    largest = max((world.pristine / name).stat().st_size for name in world.reference[step.name])
    room = draw.randint(0, largest)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    done = world.run(step, limit)
    problems = []
    if "Traceback" in done.said:
        problems.append(f"a traceback: {done.lines[-1]}")
    if left := [out for out in step.outs if (world.folder / out).is_dir() and done.code]:
        problems.append(f"half-written: {left}") if not step.appends else None
    problems += _as_before(world, step, world.run(step))
    if problems:
        world.restore(*step.outs, ".scratch", "mlflow.db")
    return Case("disk full", f"{step.name}, {room} of {largest} bytes", "went on with room again" if not problems else "wrong",
                "; ".join(problems))  # fmt: skip
