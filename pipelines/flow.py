"""DVC's own graph as a Prefect flow: one task per stage, independent stages in parallel, nothing computed here.

The graph is written once, in dvc.yaml; the cache is DVC's alone: a stage does nothing when nothing has changed. A stage that
fails stops what depends on it; the others finish.
"""

import json
import os
import signal
import sys
import uuid
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two busy processes with spinning threads slow each other down

import typer
from dvc.utils.hydra import apply_overrides
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed, wait
from prefect.runtime import flow_run
from prefect.states import State

from filbert.tracking.mlflow_store import STORE
from pipelines import clones, dvc_experiments, prefect_artifacts, prefect_server
from pipelines.dvc_graph import Stage, graph
from pipelines.run_stage import dvc_command, reproduce, stopping, thread_environment

Engine = Literal["threads", "dask"]


@flow(name="filbert", log_prints=True)
def repro(
    targets: list[str] | None = None,
    force: bool = False,
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    params: list[str] | None = None,
    experiment: str | None = None,
    engine: Engine = "threads",
    workers: int = 2,
    cluster: str | None = None,
) -> list[State]:
    """Run the pipeline, or what `targets` need of it.

    With tasks, methods, seeds or params, or with a name, the run is a DVC experiment of the last commit, in a working
    tree of its own: `dvc exp show` compares it, `dvc exp apply` brings it here.

    Args:
        targets: stages, with or without @instance; all if none
        force: run stages even if nothing has changed
        tasks: in place of those in params.yaml
        methods: in place of those in params.yaml
        seeds: in place of those in params.yaml
        params: other settings, as in `dvc exp run -S`, such as settings.kd.temperature=4
        experiment: the experiment's name; the flow run's if none is given and one is needed
        engine: threads of this process, or Dask
        workers: stages at once on this machine; each gets its share of the cores
        cluster: address of a Dask scheduler whose workers were started in clones of their own
    """
    lists = {"tasks": tasks, "methods": methods, "seeds": seeds}
    overrides = [setting(name, value) for name, value in lists.items() if value is not None] + (params or [])
    if overrides and not experiment:
        experiment = flow_run.get_name()
    folder = dvc_experiments.begin(experiment, overrides) if experiment else Path.cwd()
    env = {"FILBERT_PIPELINE": uuid.uuid4().hex}  # all stages of this run under one MLflow run
    if experiment:
        env["DVC_EXP_NAME"] = experiment
    states = run(folder, env, targets or [], lambda stage: force, engine, workers, cluster)
    if experiment and all(state.is_completed() for state in states):
        if cluster:
            dvc_command(folder, "pull", "--allow-missing")  # `dvc exp save` needs all outs in one place
        dvc_experiments.save(experiment, folder)
    elif experiment:
        get_run_logger().error("not saved; another run named %s of the same commit resumes it", experiment)
    return states  # a flow fails if a state it returns has failed


@flow(name="filbert-sweep", log_prints=True)
def sweep(
    grid: dict[str, list[Any]] | None = None,
    tasks: list[str] | None = None,
    methods: list[str] | None = None,
    seeds: list[int] | None = None,
    targets: list[str] | None = None,
    engine: Engine = "threads",
    workers: int = 2,
    cluster: str | None = None,
) -> list[State]:
    """Run the pipeline once for each point of a grid of settings, each as a DVC experiment.

    Args:
        grid: values by setting, such as {"settings.kd.temperature": [1, 2, 4]}; one point if there is none
        tasks: in place of those in params.yaml
        methods: in place of those in params.yaml
        seeds: in place of those in params.yaml
        targets: stages, with or without @instance; all if none
        engine: threads of this process, or Dask
        workers: stages at once on this machine; each gets its share of the cores
        cluster: address of a Dask scheduler whose workers were started in clones of their own
    """
    grid = grid or {}
    points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return [
        repro(
            targets=targets,
            tasks=tasks,
            methods=methods,
            seeds=seeds,
            params=[setting(name, value) for name, value in point.items()],
            experiment=f"{flow_run.get_name()}-{number}",
            engine=engine,
            workers=workers,
            cluster=cluster,
            return_state=True,
        )
        for number, point in enumerate(points, 1)
    ]


@flow(name="filbert-refresh", log_prints=True)
def refresh(sources: list[str] = ["fetch"], targets: list[str] = ["teach"], workers: int = 2) -> list[State]:  # noqa: B006
    """Fetch the data again; where they have changed, run what depends on them, up to `targets`.

    Args:
        sources: the stages that are run whether or not anything here has changed
        targets: the last stages, by default the teachers; all if none
        workers: stages at once; each gets its share of the cores
    """
    env = {"FILBERT_PIPELINE": uuid.uuid4().hex}
    return run(Path.cwd(), env, targets, lambda stage: stage.split("@")[0] in sources, "threads", workers, None)


def run(
    folder: Path,
    env: dict[str, str],
    targets: list[str],
    forced: Callable[[str], bool],
    engine: Engine,
    workers: int,
    cluster: str | None,
) -> list[State]:
    """Run the graph of `folder` within a flow, each stage with `env` where the environment does not set it already."""
    stages = graph(folder, targets)
    if not cluster:  # workers elsewhere have their own
        env = env | {"MLFLOW_TRACKING_URI": f"sqlite:///{STORE.resolve()}"}
    futures: dict[str, PrefectFuture] = {}
    with clones.task_runner(engine, workers, cluster) as runner, stopping():
        for stage in stages:
            needs = [futures[name] for name in stage.needs]
            work = {"stage": stage, "needs": needs, "force": forced(stage.name), "env": env}
            if cluster:
                own = clones.pack(folder, stage, "params.yaml")
                futures[stage.name] = runner.submit(clones.run_stage_in_clone, work | {"own": own})
                continue
            if stage.alone:
                wait(list(futures.values()))
            work["env"] = env | thread_environment(stage, workers)
            futures[stage.name] = runner.submit(run_stage, work | {"folder": folder})
            if stage.alone:
                futures[stage.name].wait()
        for future in as_completed(list(futures.values())):
            future.wait()
            if cluster and future.state.is_completed():
                clones.unpack(folder, future.result())
            elif cluster and future.state.is_failed():  # its own log is on its worker
                get_run_logger().error(future.state.message)
        states = {name: future.state for name, future in futures.items()}
    prefect_artifacts.publish_tables([stage for stage in stages if states[stage.name].is_completed()], folder)
    prefect_artifacts.publish_mlflow_link(env["FILBERT_PIPELINE"])
    return list(states.values())


@task(cache_policy=NO_CACHE, task_run_name="{stage.name}")
def run_stage(stage: Stage, needs: list[None], force: bool, folder: Path, env: dict[str, str]) -> None:
    """Run one stage in `folder`; `needs` are the tasks before it."""
    log = prefect_artifacts.StageOutput()
    if not reproduce(stage, force, folder, env, log):
        log("nothing has changed")


def setting(name: str, value: Any) -> str:
    """A setting as `dvc exp run -S` takes it."""
    return f"{name}={json.dumps(value)}"


def main(
    targets: Annotated[list[str] | None, typer.Argument(help="stages, with or without @instance; all if none")] = None,
    force: Annotated[bool, typer.Option(help="run stages even if nothing has changed")] = False,
    workers: Annotated[int, typer.Option(help="stages at once; each gets its share of the cores")] = 2,
    set_param: Annotated[list[str] | None, typer.Option("--set-param", "-S", help="as in `dvc exp run -S`")] = None,
    experiment: Annotated[str | None, typer.Option(help="run as this DVC experiment, in a tree of its own")] = None,
    engine: Annotated[Engine, typer.Option(help="threads of this process, or Dask")] = "threads",
    cluster: Annotated[str | None, typer.Option(help="address of a Dask scheduler")] = None,
) -> None:
    """Run DVC's graph as a Prefect flow; without --experiment, settings are written to params.yaml here."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # else Prefect's server outlives it
    prefect_server.start()
    if set_param and not experiment:
        apply_overrides("params.yaml", set_param)
    state = repro(
        targets=targets,
        force=force,
        params=set_param if experiment else None,
        experiment=experiment,
        engine=engine,
        workers=workers,
        cluster=cluster,
        return_state=True,
    )
    raise typer.Exit(0 if state.is_completed() else 1)


if __name__ == "__main__":
    typer.run(main)
