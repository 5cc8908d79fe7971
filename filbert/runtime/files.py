"""Atomic files: a file or folder is written under a temporary name, flushed to disk, and renamed when it is complete."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filbert import FilbertError

SCRATCH = Path(".scratch")  # the state that a killed stage resumes from; ignored by DVC and git
RANK = int(os.environ.get("RANK", "0"))  # of the processes that train one model
IS_MAIN_PROCESS = RANK == 0  # it alone writes files


def clear_scratch(scratch: Path) -> None:
    """Remove the state that a finished stage would have resumed from."""
    if IS_MAIN_PROCESS:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` if the block succeeds and is removed if it fails.

    Raises:
        FilbertError: `folder` is a file, a link, or a folder that contains the working directory.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise FilbertError(f"{folder}: expected a folder to write to, or none yet; found a file or a link: remove it")
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise FilbertError(
            f"{folder}: expected a folder of its own, which may be replaced; it holds the working directory"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = making.with_name(f"{making.name}-old")
    try:
        yield making
        if IS_MAIN_PROCESS:
            making.chmod(0o755)
            for path in making.rglob("*"):
                sync(path)
            sync(making)
            if folder.exists():
                folder.rename(old)
            making.rename(folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A temporary file name that replaces `file` if the block succeeds and is removed if it fails.

    Raises:
        FilbertError: `file` is a folder or a device.
    """
    if file.exists() and not file.is_file():
        raise FilbertError(f"{file}: expected a file to write to, or none yet; found another kind of thing")
    file.parent.mkdir(parents=True, exist_ok=True)
    making = file.with_name(f".{os.getpid()}-{file.name}")  # keeps the suffix
    try:
        yield making
        sync(making)
        os.replace(making, file)
        sync(file.parent)
    finally:
        making.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk, so that a power cut after a rename leaves no empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(file: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_file(file) as making:
        making.write_text(text, encoding="utf-8")


def write_json(file: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(file: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


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
