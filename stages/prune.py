"""Make a smaller student of a student: one task, one recipe, one seed."""

from functools import partial
from pathlib import Path

from filbert.methods.recipes import Config, columns, cut_further
from filbert.runtime import config, files
from stages import run
from stages.studying import Folders, make


def prune(
    task_name: str,
    recipe_name: str,
    seed: int,
    prepared: Path,
    words: Path,
    references: Path,
    teacher: Path,
    checkpoint: Path,
    start: Path,
    out: Path,
) -> None:
    """Cut the student in START by the recipe RECIPE_NAME: with the rows in PREPARED, the TEACHER's WORDS on them and their
    REFERENCES, make a smaller student of the task TASK_NAME in the folder OUT. CHECKPOINT is what all students start from."""
    settings = config.section(f"prune.{recipe_name}", Config)
    folders = Folders(prepared, words, references, teacher, checkpoint)
    make(
        "prune", task_name, recipe_name, seed, folders, out, settings, partial(columns, start),
        compress=lambda study: cut_further(study, start, settings), hashes={"start": files.weights_hash(start)[:12]},
    )  # fmt: skip


if __name__ == "__main__":
    run(prune)
