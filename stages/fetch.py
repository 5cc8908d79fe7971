"""Fetch the raw files of a task, or the checkpoint, from where params.yaml says they come from."""

from pathlib import Path

from filbert import FilbertError, config, sources, tasks
from stages import run

CHECKPOINT = "checkpoint"


def fetch(what: str, out: Path) -> None:
    """Fetch WHAT, a task's name or `checkpoint`, into the folder OUT."""
    if what == CHECKPOINT:
        sources.fetch_checkpoint(config.section(CHECKPOINT, sources.Source), out)
        return
    task = tasks.find(what)
    known = config.section("datasets", dict[str, sources.Source])
    if task.dataset not in known:
        raise FilbertError(f"params.yaml: no datasets.{task.dataset} for task {what}; it has {', '.join(known)}")
    sources.fetch_task(known[task.dataset], task, out)


if __name__ == "__main__":
    run(fetch)
