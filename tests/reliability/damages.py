"""Files that are damaged: of what stages wrote, of what a killed one goes on from, of settings, locks and MLflow's store."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from reliability.failures import Case, as_before
from reliability.world import Done, Step, World, reads
from tiny_graph import ran

DAMAGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "a flipped bit": lambda content, draw: _flip(content, draw.randrange(8 * len(content))) if content else b"\1",
    "cut in half": lambda content, draw: content[: len(content) // 2] if content else b"\1",
    "zeros": lambda content, draw: bytes(len(content)) if any(content) else b"\1",
    "empty": lambda content, draw: b"" if content else b"\1",
    "deleted": lambda content, draw: None,
}
SWAPPED = "another's"  # the content of another file of its name


def _flip(content: bytes, bit: int) -> bytes:
    at = bit // 8
    return content[:at] + bytes([content[at] ^ 1 << bit % 8]) + content[at + 1 :]


def kinds_of(world: World, file: str) -> list[str]:
    """The ways in which a file can be damaged."""
    return [*DAMAGES, *([SWAPPED] if _namesakes(world, file) else [])]


def _namesakes(world: World, file: str) -> list[bytes]:
    """What other files of its name hold: those of other students, tasks and seeds."""
    content = (world.pristine / file).read_bytes()
    others = sorted(name for made in world.reference.values() for name in made if Path(name).name == Path(file).name)
    found = [(world.pristine / name).read_bytes() for name in others if (world.pristine / name).is_file()]
    return [other for other in found if other != content]


def _do(world: World, file: str, kind: str, draw: random.Random) -> bytes | None:
    """Damage a file; what it then holds, None where it is gone."""
    path, before = world.folder / file, (world.pristine / file).read_bytes()
    after = draw.choice(_namesakes(world, file)) if kind == SWAPPED else DAMAGES[kind](before, draw)
    _write(path, after)
    return after


def damage(world: World, step: Step, file: str, kind: str, draw: random.Random) -> Case:
    """Damage a file that `step` wrote; the stage that reads it names the file, or what it makes is as without the damage."""
    reader = min((each for each in world.steps if reads(each, file)), key=lambda each: world.seconds[each.name])
    _do(world, file, kind, draw)
    done = world.run(reader)
    outcome, wrong = _found(world, reader, file, done)
    world.restore(file, *(reader.outs if done.code == 0 else ()), *([".scratch"] if world.orphans() else []))
    return Case(f"damage: {kind}", f"{file}, read by {reader.name}", outcome, wrong)


def _write(file: Path, content: bytes | None) -> None:
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)


def _found(world: World, reader: Step, file: str, done: Done) -> tuple[str, str]:
    """The outcome of reading a damaged file, and what is wrong with it."""
    told = done.lines[-1] if done.lines else ""
    if done.code == 0:
        other = world.altered(reader) if reader.name == "report" else world.differing(reader)
        return ("no harm", "") if not other else ("used", "what was made of it is another, and nothing was said")
    if "Traceback" in done.said:
        return "refused", f"a traceback: {told}"
    folder = str(Path(file).parent)
    return ("named", "") if file in told or folder in told else ("refused", f"the file is not named: {told}")


def repaired(world: World, damaged: list[tuple[Step, str, str]], draw: random.Random) -> list[Case]:
    """Damage files of some stages; `dvc repro` makes all as it was, from DVC's cache or anew, and another has nothing to do."""
    if anew := draw.random() < 0.5:
        shutil.rmtree(world.folder / ".dvc" / "cache" / "runs", ignore_errors=True)
    after = {file: _do(world, file, kind, draw) for _, file, kind in damaged}
    done = world.command("-m", "dvc", "repro")
    wrong = [f"`dvc repro` ended with {done.code}: {' / '.join(done.lines[-3:])}"] if done.code else []
    wrong += [f"another {name}" for step in world.steps for name in world.differing(step)]
    wrong += [
        f"still damaged: {file}"
        for file, content in after.items()
        if content is not None and _holds(world, file, content)
    ]
    if not wrong and (again := ran(world.command("-m", "dvc", "repro").said)):
        wrong.append(f"a second `dvc repro` has run {sorted(again)}")
    again_made = {step for step, _, _ in damaged} | {step for step in world.steps if step.name in ran(done.said)}
    world.restore(
        *(out for step in again_made for out in step.outs), "dvc.lock", ".scratch", "mlflow.db", ".dvc/cache/runs"
    )
    if wrong and len(damaged) > 1:  # which of them was it?
        return [case for one in damaged for case in repaired(world, [one], draw)]
    outcome = "not repaired" if wrong else "made anew" if anew else "repaired"
    return [Case(f"dvc repro: {kind}", file, outcome, "; ".join(wrong[:3])) for _, file, kind in damaged]


def _holds(world: World, file: str, content: bytes) -> bool:
    path = world.folder / file
    return path.is_file() and path.read_bytes() == content


def damaged_lock(world: World, kind: str, draw: random.Random) -> Case:
    """Damage dvc.lock: `dvc repro` names it, or makes all as it was."""
    _write(world.folder / "dvc.lock", DAMAGES[kind]((world.pristine / "dvc.lock").read_bytes(), draw))
    done = world.command("-m", "dvc", "repro")
    if done.code:
        wrong = (
            ""
            if "dvc.lock" in done.said and "Traceback" not in done.said
            else f"not named: {' / '.join(done.lines[-3:])}"
        )
    else:
        wrong = ", ".join(name for step in world.steps for name in world.differing(step))
    made = {step for step in world.steps if step.name in ran(done.said)}
    world.restore(*(out for step in made for out in step.outs), "dvc.lock", ".scratch", "mlflow.db", ".dvc/cache/runs")
    return Case(f"dvc.lock: {kind}", "dvc.lock", "named" if done.code else "no harm", wrong)


def damaged_store(world: World, kind: str, draw: random.Random) -> Case:
    """Damage MLflow's store: a stage makes what it makes, and says so where the store cannot be used."""
    step = world.step("distill@sst2-kd-1")
    world.remove(step)
    _write(world.folder / "mlflow.db", DAMAGES[kind]((world.pristine / "mlflow.db").read_bytes(), draw))
    problems = list(as_before(world, step, done := world.run(step)))
    if "Traceback" in done.said:
        problems.append(f"a traceback: {done.lines[-1]}")
    world.restore(*step.outs, "mlflow.db", ".scratch")
    return Case(f"mlflow.db: {kind}", "mlflow.db", "no figure lost" if not problems else "wrong", "; ".join(problems))


def damaged_state(world: World, step: Step, kind: str, draw: random.Random) -> list[Case]:
    """Kill a step late, damage each file of its state in turn, and let it go on: it ends as if nothing had been."""
    world.remove(step)
    point = max(1, world.points[step.name] - 4)

    world.run(step, point=point, after=False, signal=signal.SIGKILL)
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
        problems = [] if named else [each for each in as_before(world, step, done) if ".damaged" not in each]
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
        wrong = "what was made is another" if world.differing(step) else ""
    else:
        wrong = "" if "params.yaml" in told and "Traceback" not in done.said else f"not named: {told}"
    file.write_bytes(content)
    world.restore(*step.outs)
    return Case(f"settings: {kind}", "params.yaml", "no harm" if done.code == 0 else "named", wrong)
