"""DVC's own graph, in the order in which its stages can run."""

from dataclasses import dataclass
from pathlib import Path

import networkx
from dvc.repo import Repo


class StageError(RuntimeError):
    """A stage that is not there, or one that ended with an error; then the message holds its last lines."""


@dataclass(frozen=True)
class Stage:
    """One node of DVC's graph."""

    name: str
    needs: tuple[str, ...]
    alone: bool  # `meta: {alone: true}`: it measures time, nothing may run beside it
    appends: bool  # `persist: true`: it goes on with what it made before
    plain: tuple[str, ...]  # its outs with `cache: false`: git's or nobody's, not DVC's


def graph(folder: Path, targets: list[str]) -> list[Stage]:
    """The stages that `targets` need (all where none are named), each after those it needs, the lonely ones late."""
    edges = Repo(str(folder)).index.graph.reverse()  # from what is needed to what needs it
    if targets:
        names = {stage: {stage.name, stage.name.split("@")[0]} for stage in edges}
        if unknown := set(targets).difference(*names.values()):
            known = ", ".join(sorted(set().union(*names.values())))
            raise StageError(f"no stage {', '.join(sorted(unknown))}; known are {known}")
        wanted = {stage for stage in edges if names[stage] & set(targets)}
        edges = edges.subgraph(wanted.union(*(networkx.ancestors(edges, stage) for stage in wanted)))
    lonely = {stage: bool((stage.meta or {}).get("alone")) for stage in edges}
    order = networkx.lexicographical_topological_sort(edges, key=lambda stage: (lonely[stage], stage.name))
    return [
        Stage(
            stage.name,
            tuple(sorted(needed.name for needed in edges.predecessors(stage))),
            lonely[stage],
            any(out.persist for out in stage.outs),
            tuple(out.def_path for out in stage.outs if not out.use_cache),
        )
        for stage in order
    ]
