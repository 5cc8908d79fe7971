"""DVC's own graph as a Prefect flow: one task per stage, independent stages in parallel, nothing computed here.

The graph is written once, in dvc.yaml; the cache is DVC's alone. A stage runs as `dvc repro --single-item`, so that it
does nothing when nothing has changed. A stage that fails stops what depends on it; other branches finish.
"""

import os
import subprocess
import time
import uuid
from dataclasses import dataclass
from typing import Annotated

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two busy processes with spinning threads slow each other down

import networkx
import typer
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.states import State
from prefect.task_runners import ThreadPoolTaskRunner

LOCKED = "acquire lock"  # the one failure worth another try: dvc waits three seconds for its lock
LAST_LINES = 15


class StageError(RuntimeError):
    """A stage ended with an error; the message holds its last lines."""


@dataclass(frozen=True)
class Stage:
    """One node of DVC's graph."""

    name: str
    needs: tuple[str, ...]
    alone: bool  # `meta: {alone: true}`: it measures time, nothing may run beside it


def graph(targets: list[str]) -> list[Stage]:
    """The stages that `targets` need (all where none are named), each after those it needs, the lonely ones late."""
    edges = Repo().index.graph.reverse()  # from what is needed to what needs it
    if targets:
        names = {stage: {stage.addressing, stage.addressing.split("@")[0]} for stage in edges}
        if unknown := set(targets).difference(*names.values()):
            known = ", ".join(sorted(set().union(*names.values())))
            raise StageError(f"no stage {', '.join(sorted(unknown))}; known are {known}")
        wanted = {stage for stage in edges if names[stage] & set(targets)}
        edges = edges.subgraph(wanted.union(*(networkx.ancestors(edges, stage) for stage in wanted)))
    lonely = {stage: bool((stage.meta or {}).get("alone")) for stage in edges}
    order = networkx.lexicographical_topological_sort(edges, key=lambda stage: (lonely[stage], stage.addressing))
    return [
        Stage(stage.addressing, tuple(sorted(n.addressing for n in edges.predecessors(stage))), lonely[stage])
        for stage in order
    ]


@task(cache_policy=NO_CACHE, task_run_name="{stage}")
def run_stage(stage: str, force: bool) -> None:
    """Run one stage by DVC, streaming its output into the flow's log."""
    command = ["dvc", "repro", "--single-item", stage, *(["--force"] if force else [])]
    while True:
        code, lines = _run(command)
        if not code:
            return
        if not any(LOCKED in line for line in lines):
            raise StageError(f"{stage} failed with exit status {code}:\n" + "\n".join(lines[-LAST_LINES:]))
        time.sleep(1)


def _run(command: list[str]) -> tuple[int, list[str]]:
    log, lines = get_run_logger(), []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    for line in process.stdout:
        if text := line.rstrip().rsplit("\r", 1)[-1]:
            lines.append(text)
            log.info(text)
    return process.wait(), lines


@flow(name="filbert", log_prints=True)
def repro(targets: list[str] | None = None, force: bool = False) -> list[State]:
    """Run the pipeline, or what `targets` need of it."""
    os.environ["FILBERT_PIPELINE"] = uuid.uuid4().hex  # all stages of this flow under one MLflow run
    futures: dict[str, PrefectFuture] = {}
    for stage in graph(targets or []):
        if stage.alone:
            wait(list(futures.values()))
        needed = [futures[name] for name in stage.needs]
        futures[stage.name] = run_stage.submit(stage=stage.name, force=force, wait_for=needed)  # type: ignore[call-overload]
        if stage.alone:
            futures[stage.name].wait()
    wait(list(futures.values()))
    return [future.state for future in futures.values()]  # a flow fails if a state it returns has failed


def main(
    targets: Annotated[list[str] | None, typer.Argument(help="stages, with or without @instance; all if none")] = None,
    force: Annotated[bool, typer.Option(help="run stages even if nothing has changed")] = False,
    workers: Annotated[int, typer.Option(help="stages at once; each gets its share of the cores")] = 2,
    set_param: Annotated[list[str] | None, typer.Option("--set-param", "-S", help="as in `dvc exp run -S`")] = None,
) -> None:
    """Run DVC's graph as a Prefect flow."""
    if set_param:
        apply_overrides("params.yaml", set_param)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    parallel = repro.with_options(task_runner=ThreadPoolTaskRunner(max_workers=workers))  # type: ignore[arg-type]
    state = parallel(targets, force, return_state=True)
    raise typer.Exit(0 if state.is_completed() else 1)


if __name__ == "__main__":
    typer.run(main)
