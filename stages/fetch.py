"""Fetch raw files from where params.yaml says they come from: a task's tables, the checkpoint, word vectors."""

from filbert.data import sources, tasks
from filbert.runtime import config, files
from filbert.tracking import run_recorder
from stages import OutFolder, run, scratch_of

FIXED = {"checkpoint": sources.CHECKPOINT, "word_vectors": sources.VECTORS}


def fetch(what: str, out: OutFolder) -> None:
    """Fetch WHAT, `checkpoint`, `word_vectors` or a row of the task table, into the folder OUT."""
    source = config.section(what, sources.Source) if what in FIXED else tasks.source_of(tasks.find(what))
    with run_recorder.stage_run(
        "fetch", params={"kind": source.kind}, tags={"task": what}, hashes={}, scratch=scratch_of(out)
    ) as recorder:
        if what in FIXED:
            sources.fetch_files(source, FIXED[what], out)
        else:
            sources.fetch_task(source, tasks.find(what), out)
        recorder.metrics({"bytes": sum(file.stat().st_size for file in out.iterdir())})
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(fetch)
