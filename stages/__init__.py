"""From which files to which files: each stage reads, calls the library, writes. DVC runs them; see dvc.yaml."""

import errno
import functools
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import pyarrow as pa
import typer
from filelock import BaseFileLock, FileLock, Timeout
from ruamel.yaml.error import YAMLError
from safetensors import SafetensorError

from filbert import FilbertError
from filbert.runtime import files, progress, signals
from filbert.runtime.files import SCRATCH
from filbert.runtime.seals import check_seals


class Out(Enum):
    """What a stage writes at a path that it is given."""

    FOLDER = "a folder, made anew"
    FILE = "a file"
    CACHE = "a folder that is appended to"


OutFolder = Annotated[Path, Out.FOLDER]
OutFile = Annotated[Path, Out.FILE]
CacheFolder = Annotated[Path, Out.CACHE]

DAMAGE = (
    pa.ArrowException,
    SafetensorError,
    UnicodeError,
    YAMLError,
)  # what libraries raise for a file that they cannot read
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as libraries in Rust say it
REMEDIES = {
    errno.ENOSPC: "free some space and run it again",
    errno.EDQUOT: "free some space and run it again",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EACCES: "make it readable and writable for you",
    errno.EPERM: "make it readable and writable for you",
    errno.EROFS: "name a place that can be written",
}


def run(stage: Callable[..., None]) -> None:
    """Run a stage from the command line: its arguments are the function's, its help is the docstring.

    Outputs are checked before the stage begins, and so are the seals of all folders that it reads. What the user gave, a damaged
    file and a signal end it with one line; FILBERT_DEBUG=1 shows where that was.
    """
    warnings.formatwarning = _one_line
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(_guarded(stage))
    signals.install()
    try:
        app()
    except (FilbertError, OSError, signals.Stopped, *DAMAGE) as error:
        if os.environ.get("FILBERT_DEBUG"):
            raise
        print(f"{stage.__name__}: {in_one_line(error)}", file=sys.stderr)
        sys.exit(error.code if isinstance(error, signals.Stopped) else 1)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as it is printed: one of ours without the line of code that gave it."""
    where = "warning" if category is UserWarning else f"{filename}:{lineno}: {category.__name__}"
    return f"{where}: {message}\n"


def in_one_line(error: BaseException) -> str:
    """What happened, to which file, and what to do."""
    if isinstance(error, FilbertError):
        return str(error)
    if isinstance(error, signals.Stopped):
        return f"stopped by {error.signal.name}; the same command goes on where it was"
    text = next(iter(str(error).splitlines()), "")
    if number := _errno(error):
        file = getattr(error, "filename", None) or next(iter(getattr(error, "__notes__", ())), "a file")
        return f"{file}: {os.strerror(number)}; {REMEDIES.get(number, 'check the path')}"
    if isinstance(error, OSError):
        return text
    return f"{type(error).__name__}: {text}; a file is damaged: FILBERT_DEBUG=1 shows where it is read"


def _errno(error: BaseException) -> int:
    """The system's number of an error; 0 where it is none of the system's."""
    match = OS_ERROR.search(str(error))
    return int(match[1]) if match else getattr(error, "errno", None) or 0


def _guarded(stage: Callable[..., None]) -> Callable[..., None]:
    """The stage, alone on its outputs, from inputs that are as they were written."""
    kinds = {
        name: kind
        for name, hint in typing.get_type_hints(stage, include_extras=True).items()
        for kind in getattr(hint, "__metadata__", ())
        if isinstance(kind, Out)
    }

    @functools.wraps(stage)
    def guarded(**arguments: object) -> None:
        paths = {name: value for name, value in arguments.items() if isinstance(value, Path)}
        with ExitStack() as held:
            for name, kind in kinds.items():
                held.enter_context(_alone(paths[name], kind))
            for folder in {path for name, path in paths.items() if name not in kinds and path.is_dir()}:
                check_seals(folder)
            try:
                stage(**arguments)
            except Exception as error:
                error.add_note(
                    " or ".join(str(paths[name]) for name in kinds)
                )  # for libraries that do not say which file
                if type(error) is Exception and (number := _errno(error)):  # tokenizers, in Rust
                    raise OSError(number, os.strerror(number), error.__notes__[0]) from error
                raise

    return guarded


@contextmanager
def _alone(out: Path, kind: Out) -> Iterator[None]:
    """Check an output, wait until no other process makes it, and remove what killed ones left."""
    if kind is Out.FILE:
        files.check_file(out)
    else:
        files.check_folder(out, sealed=kind is Out.FOLDER)
    if not files.IS_MAIN_PROCESS:
        yield
        return
    scratch = scratch_of(out)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with _locked(FileLock(scratch.with_name(f"{scratch.name}.lock")), out):
        files.remove_unfinished(out)
        yield


@contextmanager
def _locked(lock: BaseFileLock, out: Path) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.log(f"{out}: another process is making it; waiting for its end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def scratch_of(out: Path) -> Path:
    """Where the stage that makes `out` keeps its state between a kill and the next start: within SCRATCH, wherever `out` is."""
    path, here = Path(os.path.abspath(out)), Path.cwd()
    return SCRATCH / (path.relative_to(here) if path.is_relative_to(here) else Path("elsewhere", *path.parts[1:]))
