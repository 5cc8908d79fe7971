"""What a user would take instead of a student, fitted, scored and sized; stage `latency` times it beside the exported files."""

from pathlib import Path

from filbert.data import arrow, tasks
from filbert.export import baselines as models
from filbert.export.baselines import BaselinesConfig, Split
from filbert.runtime import config, files
from filbert.tracking import run_recorder
from stages import OutFile, OutFolder, run, scratch_of


def baselines(task_name: str, prepared: Path, checkpoint: Path, out: OutFolder, figures: OutFile) -> None:
    """Fit the baselines of the task TASK_NAME on the rows in PREPARED, with the token embeddings of CHECKPOINT; put them into the
    folder OUT, their figures into FIGURES."""
    task, settings = tasks.find(task_name), config.section("baselines", BaselinesConfig)
    names = arrow.split_names(prepared, "train", "test", "validation")
    tables = {name: arrow.read_table(prepared / f"{name}.arrow") for name in names}
    with run_recorder.stage_run(
        "baselines",
        params={"baselines": settings},
        tags={"task": task_name},
        hashes={"rows": arrow.rows_digest(tables["train"])},
        scratch=scratch_of(out),
    ) as recorder:
        splits = {name: Split.of(table, task) for name, table in tables.items()}
        fitted = models.fit_baselines(task, splits, checkpoint, settings)
        with files.atomic_folder(out) as making:
            models.save(fitted, making)
        found = {name: models.measure(task, baseline, splits) for name, baseline in fitted.items()}
        recorder.metrics(found)
        files.write_json(figures, found)
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(baselines)
