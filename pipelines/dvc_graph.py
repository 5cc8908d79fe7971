"""DVC's own graph, in an order in which its stages can run."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dvc.dependency.param
import networkx
from dvc.repo import Repo
from dvc.utils.serialize import load_path


class StageError(RuntimeError):
    """A stage that does not exist, or one that ended with an error; then the message holds its last lines."""


@dataclass(frozen=True)
class Stage:
    """One node of DVC's graph."""

    name: str
    needs: tuple[str, ...]
    alone: bool  # `meta: {alone: true}`: it measures time, nothing may run beside it
    appends: bool  # `persist: true`: it adds to what it made before
    outs: tuple[str, ...]  # paths
    plain: tuple[str, ...]  # those with `cache: false`: in git or ignored, not in DVC's cache


def graph(folder: Path, targets: list[str]) -> list[Stage]:
    """The stages that `targets` need (all if there are none) in topological order, those that run alone as late as possible.

    Raises:
        StageError: a target is not a stage.
    """
    return describe(Repo(str(folder)), targets)


def find_changed(folder: Path, targets: list[str]) -> tuple[list[Stage], list[Stage]]:
    """The stages that `targets` need, and those of them that may have to run: changed, or below a changed one."""
    repo = Repo(str(folder), _wait_for_lock=True)
    stages, by_name = describe(repo, targets), {stage.name: stage for stage in repo.index.stages}
    changed: dict[str, Stage] = {}
    with (
        repo.lock,
        patch.object(dvc.dependency.param, "load_path", cache(load_path)),
    ):  # DVC reads params.yaml for each stage
        for stage in stages:
            if not changed.keys().isdisjoint(stage.needs) or _has_changed(by_name[stage.name]):
                changed[stage.name] = stage
    return stages, list(changed.values())


def _has_changed(stage: Any) -> bool:
    """As `stage.changed()`, which also writes lock files for the paths of each stage."""
    entries = [*stage.deps, *stage.outs]
    return (
        stage.is_callback or stage.always_changed or stage.changed_stage() or any(entry.status() for entry in entries)
    )


def describe(repo: Repo, targets: list[str]) -> list[Stage]:
    """As `graph`, of a repository that is open."""
    edges = repo.index.graph.reverse()  # from a stage to those that need it
    if targets:
        names = {stage: {stage.name, stage.name.split("@")[0]} for stage in edges}
        if unknown := set(targets).difference(*names.values()):
            known = ", ".join(sorted(set().union(*names.values())))
            raise StageError(f"no stage {', '.join(sorted(unknown))}; known are {known}")
        wanted = {stage for stage in edges if names[stage] & set(targets)}
        edges = edges.subgraph(wanted.union(*(networkx.ancestors(edges, stage) for stage in wanted)))
    alone = {stage: bool((stage.meta or {}).get("alone")) for stage in edges}
    position = {
        stage: i for i, stage in enumerate(repo.index.stages)
    }  # that of dvc.yaml and of the lists in params.yaml
    order = networkx.lexicographical_topological_sort(edges, key=lambda stage: (alone[stage], position[stage]))
    return [
        Stage(
            stage.name,
            tuple(sorted(needed.name for needed in edges.predecessors(stage))),
            alone[stage],
            any(out.persist for out in stage.outs),
            tuple(out.def_path for out in stage.outs),
            tuple(out.def_path for out in stage.outs if not out.use_cache),
        )
        for stage in order
    ]
