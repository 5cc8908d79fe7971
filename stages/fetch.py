"""Fetch the raw files of a task, the checkpoint or word vectors, from where params.yaml says they come from."""

from pathlib import Path

from filbert import FilbertError
from filbert.data import sources, tasks
from filbert.runtime import config, files
from filbert.tracking import recording
from stages import run, scratch_of

FIXED = {"checkpoint": sources.CHECKPOINT, "vectors": sources.VECTORS}


def fetch(what: str, out: Path) -> None:
    """Fetch WHAT, a task's name, `checkpoint` or `vectors`, into the folder OUT."""
    source = config.section(what, sources.Source) if what in FIXED else source_of(tasks.find(what))
    with recording.stage_run(
        "fetch", params={"kind": source.kind}, tags={"task": what}, hashes={}, scratch=scratch_of(out)
    ) as recorder:
        if what in FIXED:
            sources.fetch_files(source, FIXED[what], out)
        else:
            sources.fetch_task(source, tasks.find(what), out)
        recorder.metrics({"bytes": sum(file.stat().st_size for file in out.iterdir())})
    files.clear_scratch(scratch_of(out))


def source_of(task: tasks.Task) -> sources.Source:
    """Where a task's files come from."""
    known = config.section("datasets", dict[str, sources.Source])
    if task.dataset not in known:
        raise FilbertError(f"params.yaml: no datasets.{task.dataset} for task {task.name}; it has {', '.join(known)}")
    return known[task.dataset]


if __name__ == "__main__":
    run(fetch)
