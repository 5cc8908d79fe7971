"""The campaign: stages of a tiny graph are killed, their files damaged, the disk filled; every request to the network is noted.

`python -m tests.reliability.campaign --write docs/reliability.md` runs it whole; `make test-all` runs a part of it. All draws come
from --seed.
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reliability import network  # noqa: E402

NETWORK = network.watch() if __name__ == "__main__" else None  # before any library reads its settings

from reliability import failures  # noqa: E402
from reliability.failures import DAMAGES, Case  # noqa: E402
from reliability.world import Step, World  # noqa: E402

COMMAND = "python -m tests.reliability.campaign"
FILES_OF_A_STAGE = 2  # that are damaged where --damages is not 0: drawn for each kind
HEAD = """# What was tried, and what survived

Written by `{command}`, seed {seed}, in {minutes:.0f} minutes;
nothing is typed in. The graph of `dvc.yaml` runs at a tiny size, each of its {steps} stages in a process of its own, as `dvc repro`
calls it. A pass is:

- **kill**: KILL, TERM or INT, up to three times a run, at a drawn moment or just before or after a rename, a replacement, a
  manifest or a line of a history; the last run then makes the files of the run that was not killed, bit for bit (of a history all
  but its times; of timings the names of the files), nothing unfinished stays; TERM and INT end with one line, exit code 143 or 130,
  and no run of MLflow's left running;
- **damage**: a file in DVC's cache that a stage wrote is damaged; the stage that reads it ends with one line that names it, or
  makes what it made before;
- **state**: likewise for what a killed stage resumes from; it may begin anew;
- **disk full**: no file may grow over a drawn size; one line, nothing half-written; with room again the stage ends as before;
- **two at once**: two processes make one output; one waits for the other;
- **requests to the network**: noted by a recording proxy and by a hook on Python's sockets, over the whole campaign, with no
  setting that turns reports off.

| tried | times | passed | how they ended |
| --- | --- | --- | --- |
"""


def run_all(world: World) -> Iterator[Case]:
    """Run the graph once; what it makes is the reference of all that follows."""
    for step in world.steps:
        done = world.run(step, lambda: (failures.save_each_step(), failures.count_points()))
        assert done.code == 0, f"{step.name}:\n{done.said}"
        world.points[step.name] = int(next(line for line in done.lines if line.startswith(failures.PASSED)).split()[-1])
        world.reference[step.name], world.seconds[step.name] = world.hashes(step), done.seconds
    world.keep()
    left = world.orphans()
    yield Case("whole run", f"{len(world.steps)} stages", "ran", f"left behind: {left[:3]}" if left else "")


def kills(world: World, count: int, draw: random.Random) -> Iterator[Case]:
    """Kill drawn stages; those that train twice as often."""
    weights = [
        2 if step.name.startswith(("teach", "distill", "prune", "pretrain", "cache")) else 1 for step in world.steps
    ]
    for step in draw.choices(world.steps, weights, k=count):
        yield failures.kill(world, step, draw)


def damages(world: World, count: int, draw: random.Random) -> Iterator[Case]:
    """Damage files of all stages in each way, `count` in all at most."""
    chosen: list[tuple[Step, str, str]] = []
    for step, kind in itertools.product(world.steps, DAMAGES):
        names = [name for name in world.reference[step.name] if name not in step.plain and _is_read(world, name)]
        chosen += [(step, name, kind) for name in draw.sample(names, min(FILES_OF_A_STAGE, len(names)))]
    for step, name, kind in draw.sample(chosen, min(count, len(chosen))):
        yield failures.damage(world, step, name, kind, draw)


def _is_read(world: World, name: str) -> bool:
    return any(failures.reads(step, name) for step in world.steps)


def others(world: World, count: int, draw: random.Random) -> Iterator[Case]:
    """State and settings in each damage, full disks, and two processes at once."""
    trained = [world.step("teach@sst2"), world.step("cache@sst2-0"), world.step("distill@sst2-kd-1")]
    for step, kind in list(itertools.product(trained, DAMAGES))[: 3 * count]:
        yield from failures.damaged_state(world, step, kind, draw)
    for kind in list(DAMAGES)[:count]:
        yield failures.damaged_settings(world, kind, draw)
    plain = [step for step in world.steps if not step.clocked]
    for step in draw.sample(plain, min(3 * count, len(plain))):
        yield failures.disk_full(world, step, draw)
    for step in draw.sample(plain, min(count, len(plain))):
        yield failures.two_at_once(world, step)


def table(cases: list[Case]) -> str:
    """A line for each kind of thing that was tried."""
    lines = []
    for kind in dict.fromkeys(case.kind for case in cases):
        of_kind = [case for case in cases if case.kind == kind]
        ended = ", ".join(
            f"{count} {outcome}" for outcome, count in Counter(case.outcome for case in of_kind).most_common()
        )
        lines.append(f"| {kind} | {len(of_kind)} | {sum(not case.wrong for case in of_kind)} | {ended} |")
    return "\n".join(lines)


def main() -> None:
    """Run the campaign; exit code 1 where something did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--damages", type=int, default=400)
    parser.add_argument("--others", type=int, default=5, help="of each other kind, or its multiple")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", type=Path, help="the page of results")
    chosen = parser.parse_args()
    draw, started = random.Random(chosen.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        world = World.build(Path(folder))
        parts = (
            run_all(world),
            damages(world, chosen.damages, draw),
            kills(world, chosen.kills, draw),
            others(world, chosen.others, draw),
        )
        cases = []
        for case in itertools.chain(*parts):
            cases.append(case)
            mark = f"WRONG: {case.wrong}" if case.wrong else case.outcome
            print(f"{time.monotonic() - started:6.0f} s  {case.kind}  {case.what}: {mark}", flush=True)
        steps = len(world.steps)
    assert NETWORK is not None
    requests = network.attempts(NETWORK)
    cases.append(Case("requests to the network", "", f"{len(requests)} noted", "; ".join(requests[:3])))
    page = HEAD.format(
        command=_command(chosen), seed=chosen.seed, minutes=(time.monotonic() - started) / 60, steps=steps
    ) + table(cases)
    wrong = [case for case in cases if case.wrong]
    failed = "".join(f"- {case.kind}, {case.what}: {case.wrong}\n" for case in wrong)
    print(table(cases))
    print(json.dumps({"cases": len(cases), "wrong": len(wrong)}))
    if chosen.write:
        chosen.write.write_text(f"{page}\n" + (f"\n## Not passed\n\n{failed}" if wrong else ""), encoding="utf-8")
    sys.exit(bool(wrong))


def _command(chosen: argparse.Namespace) -> str:
    return (
        f"{COMMAND} --kills {chosen.kills} --damages {chosen.damages} --others {chosen.others} --write {chosen.write}"
    )


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
