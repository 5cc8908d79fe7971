"""What a user would take instead of a student, scored, sized and timed as students are."""

from pathlib import Path
from typing import Annotated

import typer

from filbert.data import arrow, tasks
from filbert.export import folder as folders
from filbert.export.baselines import BaselinesConfig, Split, measure_baselines
from filbert.runtime import config, files
from stages import run


def baselines(
    task_name: str,
    prepared: Path,
    checkpoint: Path,
    out: Path,
    teacher: Annotated[Path | None, typer.Option(help="the exported teacher, for its int8 file")] = None,
) -> None:
    """Fit the baselines of the task TASK_NAME on the rows in PREPARED, with the token embeddings of CHECKPOINT; figures to OUT."""
    task, settings = tasks.find(task_name), config.section("baselines", BaselinesConfig)
    names = [f.stem for f in prepared.glob("*.arrow") if f.stem.startswith(("train", "test", "validation"))]
    splits = {name: Split.of(arrow.read_table(prepared / f"{name}.arrow"), task) for name in sorted(names)}
    found = measure_baselines(task, splits, checkpoint, settings)
    exported = files.read_json(teacher / folders.RECORD)["files"] if teacher else {}
    if folders.INT8 in exported:
        found["teacher_int8"] = exported[folders.INT8]
    files.write_json(out, found)


if __name__ == "__main__":
    run(baselines)
