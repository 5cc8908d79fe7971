"""Make one student: one task, one method, one seed."""

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from filbert.methods.context import learns_from_transfer
from filbert.runtime import config
from stages import run
from stages.studying import Folders, make


def distill(
    task_name: str,
    method_name: str,
    seed: int,
    prepared: Path,
    transfer: Path,
    words: Path,
    references: Path,
    teacher: Path,
    checkpoint: Path,
    vectors: Path,
    out: Path,
    pretrained: Annotated[
        Path | None, typer.Option(help="a pretrained student, trained whole instead of layers of CHECKPOINT")
    ] = None,
    by: Annotated[str, typer.Option(help="the method, where METHOD_NAME is that of a start")] = "",
) -> None:
    """Compress by METHOD_NAME: from the layers of CHECKPOINT or word VECTORS, the rows in PREPARED and TRANSFER, the TEACHER's
    WORDS on them and their REFERENCES, make a student of the task TASK_NAME in the folder OUT."""
    method = import_module(f"filbert.methods.{by or method_name}")
    settings = config.section(f"distill.{method_name}", method.Config)
    folders = Folders(
        prepared,
        words,
        references,
        teacher,
        checkpoint,
        transfer if learns_from_transfer(method) else None,
        vectors,
        pretrained,
    )
    make(
        "distill", task_name, method_name, seed, folders, out, settings, method.columns,
        compress=lambda study: method.compress(study, settings), hashes={},
    )  # fmt: skip


if __name__ == "__main__":
    run(distill)
