"""What a user would take instead of a student, scored, sized and timed as students are."""

from pathlib import Path

from filbert.data import arrow, tasks
from filbert.evaluation.latency import LatencyConfig
from filbert.export.baselines import BaselinesConfig, Split, measure_baselines
from filbert.runtime import config, files
from filbert.tracking import run_recorder
from stages import OutFile, run, scratch_of


def baselines(task_name: str, prepared: Path, checkpoint: Path, out: OutFile) -> None:
    """Fit the baselines of the task TASK_NAME on the rows in PREPARED, with the token embeddings of CHECKPOINT; figures to OUT."""
    task, settings = tasks.find(task_name), config.section("baselines", BaselinesConfig)
    timing = config.section("latency", LatencyConfig)
    names = arrow.split_names(prepared, "train", "test", "validation")
    tables = {name: arrow.read_table(prepared / f"{name}.arrow") for name in names}
    with run_recorder.stage_run(
        "baselines",
        params={"baselines": settings, "latency": timing},
        tags={"task": task_name},
        hashes={"rows": arrow.rows_digest(tables["train"])},
        scratch=scratch_of(out),
    ) as recorder:
        splits = {name: Split.of(table, task) for name, table in tables.items()}
        found = measure_baselines(task, splits, checkpoint, settings, timing)
        recorder.metrics(found)
        files.write_json(out, found)
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(baselines)
