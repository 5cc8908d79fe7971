"""Fetch the raw files of a task, or the checkpoint, from where params.yaml says they come from."""

from pathlib import Path

from filbert import FilbertError, config, files, sources, tasks, tracking
from stages import run, scratch_of

CHECKPOINT = "checkpoint"


def fetch(what: str, out: Path) -> None:
    """Fetch WHAT, a task's name or `checkpoint`, into the folder OUT."""
    source = config.section(CHECKPOINT, sources.Source) if what == CHECKPOINT else _source(tasks.find(what))
    with tracking.stage_run(
        "fetch", params={"kind": source.kind}, tags={"task": what}, hashes={}, scratch=scratch_of(out)
    ) as recorder:
        if what == CHECKPOINT:
            sources.fetch_checkpoint(source, out)
        else:
            sources.fetch_task(source, tasks.find(what), out)
        recorder.metrics({"bytes": sum(file.stat().st_size for file in out.iterdir())})
    files.forget(scratch_of(out))


def _source(task: tasks.Task) -> sources.Source:
    known = config.section("datasets", dict[str, sources.Source])
    if task.dataset not in known:
        raise FilbertError(f"params.yaml: no datasets.{task.dataset} for task {task.name}; it has {', '.join(known)}")
    return known[task.dataset]


if __name__ == "__main__":
    run(fetch)
