"""The campaign: stages of a tiny graph are killed, their files damaged, the disk filled; every request to the network is noted.

`python -m tests.reliability.campaign --folder FOLDER --write docs/reliability.md` runs it whole; a part of it is among the slow
tests. All draws come from --seed. What was tried is kept in FOLDER: the same command goes on where it was.
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
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reliability import damages as damaging  # noqa: E402
from reliability import failures, network  # noqa: E402
from reliability.damages import DAMAGES  # noqa: E402
from reliability.failures import Case  # noqa: E402
from reliability.world import Step, World, open_world, reads  # noqa: E402
from tiny_graph import environment  # noqa: E402

COMMAND = "python -m tests.reliability.campaign"
FILES_OF_A_STAGE = 3  # that are damaged where --damages is not 0: drawn for each kind
AT_ONCE = 8  # damaged files of one `dvc repro`
TITLE = "## The campaign"
HEAD = """{title}

Written by `{command}`
at commit {commit}; nothing is typed in. It ran for {minutes:.0f} minutes beside other work. The graph of `dvc.yaml` runs at a
tiny size, {steps} stages. A pass is:

- **kill**: KILL, TERM or INT, up to three times a run, at a drawn moment of a stage or of what runs it, or just before or after a
  rename, a replacement, a manifest or a line of a history; the last run then makes the files of the run that was not killed, bit
  for bit (of a history all but its times; of timings the names of the files), nothing unfinished stays; a stage that gets TERM or
  INT ends with one line, exit code 143 or 130, and no run of MLflow's left running. *Alone* is a stage's own command, *two workers*
  `make repro` with two stages at once, *the flow* Prefect's; after these a second `dvc repro` has nothing to do;
- **damage**: a file that a stage wrote is damaged, or has the content of another one of its name; the stage that reads it ends with
  one line that names it, or makes what it made before;
- **dvc repro**: such files, and figures in git, eight at once; `dvc repro` makes everything as it was, from DVC's cache, or anew
  where its records of former runs are gone, and a second one has nothing to do;
- **dvc.lock**, **settings**, **mlflow.db**: damaged; named in one line, or what is made is as before;
- **state**: likewise for what a killed stage resumes from; it may begin anew;
- **disk full**: a disk (tmpfs) has room for a drawn part of what a stage writes, at most twice; one line that names a file, nothing
  half-written; with room again the stage ends as before. Only root can try this: others leave it out;
- **two at once**: two processes make one output; one waits for the other;
- **requests to the network**: noted by a recording proxy and by a hook on Python's sockets, over the whole campaign, with no
  setting that turns reports off.

| tried | times | passed | how they ended |
| --- | --- | --- | --- |
"""


@dataclass
class Journal:
    """What was tried, a line each; what an earlier run has tried is not tried again."""

    file: Path
    seed: int

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.known = {each["key"]: each for each in map(json.loads, lines)}

    def run(self, key: str, call: Callable[[random.Random], list[Case]]) -> list[Case]:
        """The cases of a key, each key with draws of its own."""
        if key not in self.known:
            before = time.monotonic()
            cases = call(random.Random(f"{self.seed} {key}"))
            seconds = time.monotonic() - before
            self.known[key] = {"key": key, "seconds": seconds, "cases": [asdict(case) for case in cases]}
            with self.file.open("a") as stream:
                stream.write(json.dumps(self.known[key]) + "\n")
            for case in cases:
                mark = f"WRONG: {case.wrong}" if case.wrong else case.outcome
                print(
                    f"{before - self.started:6.0f} s  {case.kind}  {case.what}: {mark}  ({seconds:.0f} s)", flush=True
                )
        return [Case(**case) for case in self.known[key]["cases"]]


def kills(journal: Journal, world: World, count: int) -> Iterator[Case]:
    """Kill until there were `count` kills."""
    for number in itertools.count():
        if count <= 0:
            return
        for case in journal.run(f"kill {number}", lambda draw, most=count: [failures.kill(world, draw, most)]):  # type: ignore[misc]
            count -= case.count
            yield case


def damages(journal: Journal, world: World, count: int) -> Iterator[Case]:
    """Damage files of all stages in each way, `count` in all at most: what the stage that reads them says, then what `dvc repro`
    does, which is given figures in git and outputs that nothing reads as well."""
    draw = random.Random(f"{journal.seed} damages")
    sealed = [(step, name) for step, name in _files(world) if name not in step.plain and _is_read(world, name)]
    for step, name, kind in _drawn(world, sealed, count, draw):
        yield from journal.run(f"{kind}: {name}", partial(_alone, damaging.damage, world, step, name, kind))
    chosen = _drawn(world, _files(world), count, draw)
    for group in (chosen[start : start + AT_ONCE] for start in range(0, len(chosen), AT_ONCE)):
        key = ", ".join(f"{kind} of {name}" for _, name, kind in group)
        yield from journal.run(f"dvc repro: {key}", partial(damaging.repaired, world, group))


def _drawn(world: World, files: list[tuple[Step, str]], count: int, draw: random.Random) -> list[tuple[Step, str, str]]:
    """Up to `count` damages, of each stage and kind no more than FILES_OF_A_STAGE."""
    by_kind: dict[tuple[str, str], list[tuple[Step, str, str]]] = {}
    for step, name in files:
        for kind in damaging.kinds_of(world, name):
            by_kind.setdefault((step.name, kind), []).append((step, name, kind))
    chosen = [each for all in by_kind.values() for each in draw.sample(all, min(FILES_OF_A_STAGE, len(all)))]
    return draw.sample(chosen, min(count, len(chosen)))


def _files(world: World) -> list[tuple[Step, str]]:
    return [(step, name) for step in world.steps for name in world.reference[step.name]]


def _is_read(world: World, name: str) -> bool:
    return any(reads(step, name) for step in world.steps)


def others(journal: Journal, world: World, count: int) -> Iterator[Case]:
    """State, settings, dvc.lock and MLflow's store in each damage, full disks, and two processes at once."""
    draw = random.Random(f"{journal.seed} others")
    trained = [world.step("teach@sst2"), world.step("cache@sst2-0"), world.step("distill@sst2-kd-1")]
    for step, kind in list(itertools.product(trained, DAMAGES))[: 3 * count]:
        yield from journal.run(f"state of {step.name}: {kind}", partial(damaging.damaged_state, world, step, kind))
    for kind in list(DAMAGES)[:count]:
        for call in (damaging.damaged_settings, damaging.damaged_lock, damaging.damaged_store):
            yield from journal.run(f"{call.__name__}: {kind}", partial(_alone, call, world, kind))
    plain = [step for step in world.steps if not step.clocked]
    for step in draw.sample(plain, min(3 * count, len(plain))) if os.geteuid() == 0 else ():
        yield from journal.run(f"disk full: {step.name}", partial(_alone, failures.disk_full, world, step))
    for step in draw.sample(plain, min(count, len(plain))):
        yield from journal.run(f"two at once: {step.name}", lambda _, s=step: [failures.two_at_once(world, s)])  # type: ignore[misc]


def _alone(call: Callable[..., Case], *words: object) -> list[Case]:
    return [call(*words)]


def table(cases: list[Case]) -> str:
    """A line for each kind of thing that was tried."""
    lines = []
    for kind in sorted({case.kind for case in cases}):
        of_kind = [case for case in cases if case.kind == kind]
        ended = Counter(case.outcome for case in of_kind for _ in range(case.count)).most_common()
        passed = sum(case.count for case in of_kind if not case.wrong)
        told = ", ".join(f"{count} {outcome}" for outcome, count in ended)
        lines.append(f"| {kind} | {sum(case.count for case in of_kind)} | {passed} | {told} |")
    return "\n".join(lines)


def write_section(page: Path, section: str) -> None:
    """Replace the campaign's section of a page, or append one."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    before, _, after = text.partition(TITLE)
    _, _, rest = after.partition("\n## ")
    page.write_text(f"{before}{section}\n" + (f"\n## {rest}" if rest else ""), encoding="utf-8")


def main() -> None:
    """Run the campaign; exit code 1 where something did not survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damages", type=int, default=400)
    parser.add_argument("--others", type=int, default=5, help="of each other kind, or its multiple")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where it is kept, and gone on with; a temporary one if none")
    parser.add_argument("--write", type=Path, help="the page whose section of results is replaced")
    chosen = parser.parse_args()
    if chosen.folder:
        chosen.folder.mkdir(parents=True, exist_ok=True)
    with nullcontext(chosen.folder) if chosen.folder else tempfile.TemporaryDirectory(prefix="campaign-") as name:
        folder = Path(name).resolve()
        log, journal = folder / "network.log", Journal(folder / "tried.jsonl", chosen.seed)
        log.touch()
        with open_world(folder, network.watched_environment(environment(), log)) as world:
            parts = (
                damages(journal, world, chosen.damages),
                others(journal, world, chosen.others),
                kills(journal, world, chosen.kills),
            )
            cases = list(itertools.chain(*parts))
        requests = network.attempts(log)
        cases.append(Case("requests to the network", "", f"{len(requests)} noted", "; ".join(requests[:3])))
        minutes = sum(each["seconds"] for each in journal.known.values()) / 60
    wrong = [case for case in cases if case.wrong]
    failed = "".join(f"- {case.kind}, {case.what}: {case.wrong}\n" for case in wrong)
    print(table(cases))
    print(json.dumps({"cases": len(cases), "wrong": len(wrong)}))
    if chosen.write:
        head = HEAD.format(
            title=TITLE, command=_command(chosen), commit=world.commit, minutes=minutes, steps=len(world.steps)
        )
        write_section(chosen.write, head + table(cases) + (f"\n\nNot passed:\n\n{failed.rstrip()}" if wrong else ""))
    sys.exit(bool(wrong))


def _command(chosen: argparse.Namespace) -> str:
    options = " ".join(f"--{name} {getattr(chosen, name)}" for name in ("kills", "damages", "others", "seed", "write"))
    return f"{COMMAND} {options}"


if __name__ == "__main__":
    main()
