"""Train one student: one task, one method or variant, one seed."""

from pathlib import Path
from typing import Annotated

import typer

from filbert.data import tasks
from filbert.methods import load_method
from filbert.runtime.files import weights_hash
from filbert.training.loop import section_for
from stages import OutFolder, run
from stages.method_run import Folders, run_method


def distill(
    task_name: str,
    method_name: str,
    seed: int,
    prepared: Path,
    transfer: Path,
    cache: Path,
    references: Path,
    teacher: Path,
    checkpoint: Path,
    word_vectors: Path,
    out: OutFolder,
    variant: Annotated[str, typer.Option(help="the student's name, whose settings are merged over the method's")] = "",
    start: Annotated[
        Path | None, typer.Option(help="a pretrained student, trained whole, instead of CHECKPOINT")
    ] = None,
) -> None:
    """Train a student of the task TASK_NAME by METHOD_NAME in the folder OUT: from layers of CHECKPOINT or WORD_VECTORS, with
    the rows in PREPARED and TRANSFER, the CACHE of the TEACHER's outputs on them and their REFERENCES."""
    method, name = load_method(method_name), variant or method_name
    settings = section_for(tasks.find(task_name), [f"settings.{method_name}", f"settings.{name}"], method.Config)
    learns_from_transfer = getattr(settings, "transfer", False)
    folders = Folders(
        prepared,
        cache,
        references,
        teacher,
        checkpoint,
        transfer if learns_from_transfer else None,
        word_vectors,
        None if start == checkpoint else start,
    )
    run_method(
        "distill",
        task_name,
        name,
        seed,
        folders,
        out,
        settings,
        columns=lambda layer_map: method.columns(layer_map, settings),
        compress=lambda context: method.compress(context, settings),
        hashes={"pretrained": weights_hash(folders.start)[:12]} if folders.start else {},
    )


if __name__ == "__main__":
    run(distill)
