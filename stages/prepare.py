"""Raw tables become validated, deduplicated, split rows in Arrow."""

from pathlib import Path

from filbert.data import arrow, tasks
from filbert.data import splits as splits
from filbert.runtime import config, files
from filbert.tracking import run_recorder
from stages import OutFile, OutFolder, run, scratch_of


def prepare(task_name: str, raw: Path, out: OutFolder, counts: OutFile) -> None:
    """Prepare the task TASK_NAME from the tables in RAW into the folder OUT; write how many rows went where to COUNTS."""
    task, settings = tasks.find(task_name), config.section("prepare", splits.PrepareConfig)
    prepared = splits.prepare(raw, task, settings)
    with run_recorder.stage_run(
        "prepare",
        params={"prepare": settings},
        tags={"task": task_name},
        hashes={"rows": arrow.rows_digest(prepared.tables["train"])},
        scratch=scratch_of(out),
    ) as recorder:
        with files.atomic_folder(out) as making:
            for name, table in prepared.tables.items():
                arrow.write_table(table, making / f"{name}.arrow")
        files.write_json(counts, prepared.counts)
        recorder.metrics(prepared.counts)
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(prepare)
