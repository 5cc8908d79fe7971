"""Stages on several machines: each Dask worker runs them in a clone of its own; their outs are exchanged through a DVC remote."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.utils.serialize import load_yaml, modify_yaml
from filelock import FileLock
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from filbert.runtime.files import SCRATCH
from pipelines.dvc_experiments import git
from pipelines.dvc_graph import Stage, StageError
from pipelines.prefect_artifacts import StageOutput
from pipelines.run_stage import dvc_command, reproduce


@dataclass(frozen=True)
class StageState:
    """The state of a stage as one clone sends it to another; outs in DVC's cache go through the remote."""

    commit: str
    entries: dict[str, Any]  # of dvc.lock, by stage
    files: dict[str, bytes]  # by path


def pack(folder: Path, stage: Stage, *files: str) -> StageState:
    """A stage's entry in dvc.lock, its outs that are not in DVC's cache, and other files, as far as they exist."""
    lock = folder / "dvc.lock"
    entries = load_yaml(str(lock))["stages"] if lock.exists() else {}
    return StageState(
        git(folder, "rev-parse", "HEAD"),
        {stage.name: entries[stage.name]} if stage.name in entries else {},
        {name: (folder / name).read_bytes() for name in (*files, *stage.plain) if (folder / name).exists()},
    )


def unpack(folder: Path, state: StageState) -> None:
    """Write `state` into the clone `folder`. Raises StageError if that is at another commit."""
    if (here := git(folder, "rev-parse", "HEAD")) != state.commit:
        raise StageError(f"{folder.resolve().name} is at {here[:7]}, the flow at {state.commit[:7]}: check that out")
    for name, content in state.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with modify_yaml(str(folder / "dvc.lock")) as lock:
        lock.setdefault("schema", "2.0")
        lock.setdefault("stages", {}).update(state.entries)


@task(cache_policy=NO_CACHE, task_run_name="{stage.name}")
def run_stage_in_clone(
    stage: Stage, needs: list[StageState], own: StageState, force: bool, env: dict[str, str]
) -> StageState:
    """Run one stage in the clone in which this worker was started, one at a time, from the state of those before it and its own."""
    here = Path.cwd()
    (here / SCRATCH).mkdir(exist_ok=True)
    with FileLock(here / SCRATCH / "clone.lock"):
        for state in (own, *needs):
            unpack(here, state)
        log = StageOutput()
        if stage.needs:
            dvc_command(here, "pull", "--force", *stage.needs, on_line=log)  # over what a stage that died here has left
        if stage.appends and own.entries:
            with suppress(StageError):  # nobody has it, or there is more here than was finished
                dvc_command(here, "pull", stage.name, on_line=log)
        reproduce(stage, force, here, env, log, pull=True)
        dvc_command(here, "push", stage.name, on_line=log)
        return pack(here, stage)


def task_runner(engine: str, workers: int, cluster: str | None) -> TaskRunner:
    """Threads, a Dask cluster of `workers` processes for this run, or the one whose scheduler is at `cluster`."""
    if engine == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise StageError("the engine dask needs one more package: pip install -e '.[spread]'") from error
    return DaskTaskRunner(
        address=cluster, cluster_kwargs=None if cluster else {"n_workers": workers, "threads_per_worker": 1}
    )
