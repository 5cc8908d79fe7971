"""Atomic files: a file or folder is written under a temporary name, flushed to disk, and renamed when it is complete."""

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filbert import FilbertError
from filbert.runtime.seals import is_ours, seal

SCRATCH = Path(".scratch")  # the state that a killed stage resumes from; ignored by DVC and git
RANK = int(os.environ.get("RANK", "0"))  # of the processes that train one model
IS_MAIN_PROCESS = RANK == 0  # it alone writes files
MAKING = ".filbert-"  # how the names of unfinished files and folders begin; they end with the name of what they become


def clear_scratch(scratch: Path) -> None:
    """Remove the state that a finished stage would have resumed from."""
    if IS_MAIN_PROCESS:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def atomic_folder(folder: Path, sealed: bool = True) -> Iterator[Path]:
    """A temporary folder that replaces `folder` if the block succeeds and is removed if it fails.

    With `sealed`, hashes of its files are written into it (seals.py), and only a folder that has some is replaced.

    Raises:
        FilbertError: `folder` is not ours to replace (check_folder).
    """
    check_folder(folder, sealed)
    making = Path(tempfile.mkdtemp(prefix=MAKING, suffix=f"-{folder.name}", dir=folder.parent))
    old = making.with_name(f"{MAKING}old_{making.name.removeprefix(MAKING)}")
    try:
        yield making
        if IS_MAIN_PROCESS:
            making.chmod(0o755)
            if sealed:
                seal(making)
            for path in making.rglob("*"):
                sync(path)
            sync(making)
            if folder.exists():
                folder.rename(old)
            making.rename(folder)
            sync(folder.parent)
    finally:
        if old.exists() and not folder.exists():  # the second rename failed
            old.rename(folder)
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A temporary file name that replaces `file` if the block succeeds and is removed if it fails.

    Raises:
        FilbertError: `file` is a folder or a device.
    """
    check_file(file)
    making = file.with_name(f"{MAKING}{os.getpid()}-{file.name}")  # keeps the suffix
    try:
        yield making
        sync(making)
        os.replace(making, file)
        sync(file.parent)
    finally:
        making.unlink(missing_ok=True)


def check_folder(folder: Path, sealed: bool = True) -> None:
    """Make sure that `folder` can be written, and that what is there, if anything, may be replaced.

    Raises:
        FilbertError: it is a file, a link, holds the working directory or, if `sealed`, files that no stage wrote.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FilbertError(f"{folder}: expected a folder to write to, or none yet; found a file or a link: remove it")
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise FilbertError(
            f"{folder}: expected a folder of its own, which may be replaced; it holds the working directory"
        )
    if sealed and folder.exists() and not is_ours(folder):
        raise FilbertError(
            f"{folder}: expected a folder of its own, which may be replaced; it holds files that no stage wrote, such as "
            f"{min(path.name for path in folder.iterdir())}: name another folder, or remove this one"
        )
    _check_parent(folder)


def check_file(file: Path) -> None:
    """Make sure that `file` can be written.

    Raises:
        FilbertError: it is a folder or a device.
    """
    if file.exists() and not file.is_file():
        raise FilbertError(f"{file}: expected a file to write to, or none yet; found another kind of thing")
    _check_parent(file)


def _check_parent(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise FilbertError(
            f"{path}: cannot be written: {error.filename}: {error.strerror}; name another place, or make it writable"
        ) from error


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left beside `path`, an output that this process alone makes."""
    name = re.compile(rf"{re.escape(MAKING)}\w+-{re.escape(path.name)}")
    for left in [each for each in path.parent.iterdir() if name.fullmatch(each.name)]:
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk, so that a power cut after a rename leaves no empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_unicode(text: str) -> bool:
    """Whether a text can be written: it has no half of a surrogate pair, as JSON may escape one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(file) as making:
        making.write_text(text, encoding="utf-8")


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file atomically.

    Raises:
        FilbertError: a number in it is NaN or infinite; the message has its key.
    """
    if wrong := next(_not_finite(value, ""), ""):
        raise FilbertError(f"{file}: expected finite numbers, got {wrong}; the file was not written")
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _not_finite(value: Any, key: str) -> Iterator[str]:
    """The keys of numbers that are NaN or infinite, and these."""
    if isinstance(value, dict | list | tuple):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key} = {value}"


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FilbertError: it is none.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FilbertError(f"{file}: damaged: expected JSON, got {error}; make it again with `dvc repro`") from error


def sha256(*files: Path) -> str:
    """The SHA-256 of the contents of `files`, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def code_hash() -> str:
    """The SHA-256 over the source of all rooms: a training that other code began is not resumed."""
    return sha256(*sorted(Path(__file__).parent.parent.rglob("*.py")))


def weights_hash(folder: Path) -> str:
    """The SHA-256 over all safetensors files of a Hugging Face folder."""
    return sha256(*sorted(folder.glob("*.safetensors")))
