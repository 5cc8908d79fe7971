"""What befalls a stage: it is killed at a moment or at a failpoint, the disk is full, it is not alone."""

import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from reliability.world import Done, Step, World
from tiny_graph import ran

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TRAINS = ("teach", "distill", "prune", "pretrain", "cache")  # such stages are drawn twice as often
MOST_KILLS = 3  # of a run
MARGIN = 64 << 20  # bytes of room for a stage that is to end


@dataclass(frozen=True)
class Way:
    """How stages are run while they are killed."""

    words: tuple[str, ...]
    weight: float
    stages: int
    start: float  # seconds before the first stage runs, about


WAYS = {
    "alone": Way((), 4, 1, 0.0),
    "dvc repro": Way(("-m", "dvc", "repro"), 2.5, 1, 2.0),
    "two workers": Way(("-m", "pipelines.repro", "--jobs", "2"), 2, 2, 10.0),
    "the flow": Way(("-m", "pipelines.flow", "--workers", "2"), 1.5, 2, 15.0),
}


@dataclass(frozen=True)
class Case:
    """One thing that was tried, and how it ended; `wrong` is empty where all is well."""

    kind: str
    what: str
    outcome: str
    wrong: str = ""
    count: int = 1  # of kills, those of one run


# ------------------------------------------------------------------------------------------------------------------- kills


def kill(world: World, draw: random.Random, most: int) -> Case:
    """Kill drawn stages, or what runs them, up to `most` times, let them end, and compare with the run that was not killed."""
    name = draw.choices(list(WAYS), [way.weight for way in WAYS.values()])[0]
    steps = _choose(world, WAYS[name].stages, draw)
    if name != "alone":
        world.forget(steps)
    elif steps[0].appends or draw.random() < 0.5:
        world.remove(steps[0])
    kills, problems, cleanly = [], [], True
    for _ in range(draw.randint(1, min(MOST_KILLS, most))):
        told, failpoint = _draw_kill(world, WAYS[name], steps, draw)
        kills.append(told)
        done, number = _run(world, name, steps, failpoint), failpoint["signal"]
        if name == "alone":
            cleanly &= number != signal.SIGKILL
            problems += [f"{told}: {wrong}" for wrong in _ended_well(done, signal.Signals(number))]
            if done.code not in (0, -number) and cleanly and world.running():
                problems.append(f"{told}: MLflow takes it to be running")
    done = _run(world, name, steps, None)
    for step in steps:
        problems += as_before(world, step, done)
    if name != "alone" and not problems and (again := ran(_run(world, "dvc repro", steps, None).said)):
        problems.append(f"a second `dvc repro` has run {again}")
    world.restore(*(out for step in steps for out in step.outs), "dvc.lock", ".scratch", "mlflow.db")
    what = f"{' and '.join(step.name for step in steps)}: {', '.join(kills)}"
    return Case(f"kill, {name}", what, "not survived" if problems else "survived", "; ".join(problems), len(kills))


def _choose(world: World, count: int, draw: random.Random) -> list[Step]:
    """Drawn stages of which none needs another."""
    chosen: list[Step] = []
    while len(chosen) < count:
        others = [step for step in world.steps if all(_apart(world, step, each) for each in chosen)]
        if not others:
            return chosen
        chosen += draw.choices(others, [2 if step.name.startswith(TRAINS) else 1 for step in others])
    return chosen


def _apart(world: World, one: Step, other: Step) -> bool:
    return one.name not in world.above(other) and other.name not in world.above(one)


def _draw_kill(world: World, way: Way, steps: list[Step], draw: random.Random) -> tuple[str, dict]:
    """A kill in words and as a failpoint: half of them at a point of a stage, the others at a moment of it or of what runs it."""
    step, number, after = draw.choice(steps), draw.choice(SIGNALS), draw.random() < 0.5
    if draw.random() < 0.5:
        point = draw.randint(1, max(1, world.points[step.name]))
        return f"{number.name} {'after' if after else 'before'} point {point} of {step.name}", {
            "stage": step.name, "point": point, "after": after, "signal": number,
        }  # fmt: skip
    seconds = draw.random() * world.seconds[step.name]
    if way.words and draw.random() < 0.5:
        return f"{number.name} to the runner at {way.start + seconds:.1f} s", {
            "stage": "", "seconds": way.start + seconds, "signal": number,
        }  # fmt: skip
    return f"{number.name} at {seconds:.2f} s of {step.name}", {
        "stage": step.name,
        "seconds": seconds,
        "signal": number,
    }


def _run(world: World, name: str, steps: list[Step], failpoint: dict | None) -> Done:
    """Run stages in one of WAYS."""
    if name == "alone":
        return world.run(steps[0], **(failpoint or {"stage": "none"}))
    env = {"NO_PROXY": "127.0.0.1", "PREFECT_HOME": str(world.folder.parent / "prefect")} if name == "the flow" else {}
    return world.command(*WAYS[name].words, *(step.name for step in steps), failpoint=failpoint, **env)


def _ended_well(done: Done, number: signal.Signals) -> Iterator[str]:
    """It was killed, or stopped with one line and a shell's code, or had ended before; a signal may come before it can answer."""
    if done.code in (0, -number):
        return
    if number is signal.SIGKILL or done.code != 128 + number:
        yield f"exit code {done.code}: {' / '.join(done.lines[-3:])}"
    elif not done.lines or f"stopped by {number.name}" not in done.lines[-1] or "Traceback" in done.said:
        yield f"it said: {' / '.join(done.lines[-3:])}"


def as_before(world: World, step: Step, done: Done) -> Iterator[str]:
    if done.code:
        yield f"the last run ended with {done.code}: {' / '.join(done.lines[-3:])}"
        return
    if other := world.differing(step):
        yield f"other outputs: {other[:3]}"
    if left := world.orphans():
        yield f"left behind: {left[:3]}"


def two_at_once(world: World, step: Step) -> Case:
    """Two processes make one output: both end well, one after the other."""
    world.remove(step)
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda _: world.run(step), range(2)))
    said = "\n".join(done.said for done in ended)
    problems = list(as_before(world, step, Done(max(done.code for done in ended), said, 0.0)))
    if "another process is making it" not in said:
        problems.append("neither waited")
    world.restore(*step.outs, "mlflow.db", ".scratch")
    return Case("two at once", step.name, "one waited" if not problems else "wrong", "; ".join(problems))


# ---------------------------------------------------------------------------------------------------------------- disk full


def disk_full(world: World, step: Step, draw: random.Random) -> Case:
    """There is room for a drawn part of what a step writes, at most twice: one line, nothing half-written; with room again it
    ends as before."""
    written = sum((world.pristine / name).stat().st_size for name in world.reference[step.name])
    room, problems = draw.randint(0, 2 * written), []
    with world.small_disk(2 * written + MARGIN, step) as full:
        with full(room):
            done = world.run(step)
        if "Traceback" in done.said:
            problems.append(f"a traceback: {done.lines[-1]}")
        if done.code and "free some space" not in done.lines[-1]:
            problems.append(f"it said: {done.lines[-1]}")
        if done.code and not step.appends and (left := [out for out in step.outs if (world.folder / out).is_dir()]):
            problems.append(f"half-written: {left}")
        problems += as_before(world, step, world.run(step))
    outcome = "wrong" if problems else "went on with room again" if done.code else "had room enough"
    return Case("disk full", f"{step.name}, {room} bytes of {written}", outcome, "; ".join(problems))
