"""Prune a student further: one task, one chain, one seed."""

from pathlib import Path

from filbert.data import tasks
from filbert.methods.rosita import ChainConfig, chain_columns, prune_further
from filbert.runtime import files
from filbert.training.loop import section_for
from stages import OutFolder, run
from stages.method_run import Folders, run_method


def prune(
    task_name: str,
    chain_name: str,
    seed: int,
    prepared: Path,
    transfer: Path,
    cache: Path,
    references: Path,
    teacher: Path,
    checkpoint: Path,
    start: Path,
    out: OutFolder,
) -> None:
    """Prune the student in START by the settings of the chain CHAIN_NAME: with the rows in PREPARED and TRANSFER, the CACHE of the
    TEACHER's outputs on them and their REFERENCES, make a smaller student of the task TASK_NAME in the folder OUT. CHECKPOINT is
    what all students start from."""
    settings = section_for(tasks.find(task_name), f"settings.{chain_name}", ChainConfig)
    run_method(
        "prune",
        task_name,
        chain_name,
        seed,
        Folders(prepared, cache, references, teacher, checkpoint, transfer if settings.transfer else None),
        out,
        settings,
        columns=lambda layer_map: chain_columns(start, layer_map, settings),
        compress=lambda context: prune_further(context, start, settings),
        hashes={"start": files.weights_hash(start)[:12]},
    )


if __name__ == "__main__":
    run(prune)
