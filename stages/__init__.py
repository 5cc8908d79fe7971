"""From which files to which files: each stage reads, calls the library, writes. DVC runs them; see dvc.yaml."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import typer

from filbert import FilbertError
from filbert.runtime.files import SCRATCH


def run(stage: Callable[..., None]) -> None:
    """Run a stage from the command line: its arguments are the function's, its help is the docstring."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(stage)
    try:
        app()
    except (FilbertError, FileNotFoundError) as error:
        sys.exit(f"{stage.__name__}: {error}")


def scratch_of(out: Path) -> Path:
    """Where the stage that makes `out` keeps its state between a kill and the next start: within SCRATCH, wherever `out` is."""
    path, here = Path(os.path.abspath(out)), Path.cwd()
    return SCRATCH / (path.relative_to(here) if path.is_relative_to(here) else Path("elsewhere", *path.parts[1:]))
