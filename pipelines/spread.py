"""Stages on several machines: each Dask worker runs them in a clone of its own, what they make goes through a DVC remote."""

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
from pipelines.experiments import git
from pipelines.graph import Stage, StageError
from pipelines.stage import dvc, reproduce


@dataclass(frozen=True)
class Parcel:
    """What one clone tells another of a stage; what DVC keeps goes through the remote."""

    commit: str
    entries: dict[str, Any]  # of dvc.lock, by stage
    files: dict[str, bytes]  # by path


def pack(folder: Path, stage: Stage, *files: str) -> Parcel:
    """A stage's entry in dvc.lock, its outs that DVC does not keep, and other files, as far as they are there."""
    lock = folder / "dvc.lock"
    entries = load_yaml(str(lock))["stages"] if lock.exists() else {}
    return Parcel(
        git(folder, "rev-parse", "HEAD"),
        {stage.name: entries[stage.name]} if stage.name in entries else {},
        {name: (folder / name).read_bytes() for name in (*files, *stage.plain) if (folder / name).exists()},
    )


def unpack(folder: Path, parcel: Parcel) -> None:
    """Put it in its place. Raises StageError if this clone is at another commit."""
    if (here := git(folder, "rev-parse", "HEAD")) != parcel.commit:
        raise StageError(f"{folder.resolve().name} is at {here[:7]}, the flow at {parcel.commit[:7]}: check that out")
    for name, content in parcel.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    with modify_yaml(str(folder / "dvc.lock")) as lock:
        lock.setdefault("schema", "2.0")
        lock.setdefault("stages", {}).update(parcel.entries)


@task(cache_policy=NO_CACHE, task_run_name="{stage.name}")
def run_stage_apart(stage: Stage, needs: list[Parcel], own: Parcel, force: bool, env: dict[str, str]) -> Parcel:
    """Run one stage in the clone this worker was started in, one at a time; `needs` and `own` say how things stand."""
    here = Path.cwd()
    (here / SCRATCH).mkdir(exist_ok=True)
    with FileLock(here / SCRATCH / "spread.lock"):
        for parcel in (own, *needs):
            unpack(here, parcel)
        if stage.needs:
            dvc(here, "pull", "--force", *stage.needs)  # whatever a stage that died here has left
        if stage.appends and own.entries:
            with suppress(StageError):  # nobody has it, or there is more here than was finished
                dvc(here, "pull", stage.name)
        reproduce(stage, force, here, env, "--pull")
        dvc(here, "push", stage.name)
        return pack(here, stage)


def runner(engine: str, workers: int, cluster: str | None) -> TaskRunner:
    """Threads, a Dask cluster of `workers` processes made for this run, or the one whose scheduler is at `cluster`."""
    if engine == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise StageError("the engine dask needs a package more: pip install -e '.[spread]'") from error
    return DaskTaskRunner(
        address=cluster, cluster_kwargs=None if cluster else {"n_workers": workers, "threads_per_worker": 1}
    )
