"""Nothing half-written: a file or folder is made under a temporary name and renamed when it is whole."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRATCH = Path(".scratch")  # what survives a killed stage; known to neither DVC nor git
RANK = int(os.environ.get("RANK", "0"))  # of several processes that train one model
IS_MAIN_PROCESS = RANK == 0  # alone writes


def clear_scratch(scratch: Path) -> None:
    """Remove what a finished stage kept against a kill."""
    if IS_MAIN_PROCESS:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` if the block ends well and vanishes if it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield making
        if IS_MAIN_PROCESS:
            making.chmod(0o755)
            shutil.rmtree(folder, ignore_errors=True)
            making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A temporary file name that takes the place of `file` if the block ends well and vanishes if it does not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    making = file.with_name(f".{os.getpid()}-{file.name}")  # keeps the suffix
    try:
        yield making
        os.replace(making, file)
    finally:
        making.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    with atomic_file(file) as making:
        making.write_text(text, encoding="utf-8")


def write_json(file: Path, value: Any) -> None:
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(file: Path) -> Any:
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
    """The SHA-256 over the source of this package: a half-trained model of other code is not gone on with."""
    return sha256(*sorted(Path(__file__).parent.rglob("*.py")))


def weights_hash(folder: Path) -> str:
    """The SHA-256 over all weight files of a Hugging Face folder."""
    return sha256(*sorted(folder.glob("*.safetensors")))
