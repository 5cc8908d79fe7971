"""The seal of a folder that a stage wrote: a hash of each file in it. What a stage reads is what the former stage wrote.

It also tells our folders from others, so that no folder of the user's is replaced. The teacher's cache, which grows, has a
manifest with checksums in its place.
"""

import json
from pathlib import Path

import xxhash

from filbert import FilbertError

SEAL = "HASHES.json"  # XXH3 by file, in each folder that a stage wrote
CARD = "README.md"  # people may edit it
LEVELS = ("", "*/", "*/*/", "*/*/*/")  # at which a folder that is read may hold sealed ones: task, student, seed


class SealError(FilbertError):
    """A file is not as its stage wrote it."""


def seal(folder: Path) -> None:
    """Write the hashes of all files of a folder into it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    hashes = {path.relative_to(folder).as_posix(): xxh3(path) for path in files}
    (folder / SEAL).write_text(json.dumps(hashes, indent=2) + "\n", encoding="utf-8")


def check_seals(folder: Path) -> None:
    """Compare every file of the sealed folders in `folder`, itself included; folders without a seal are not ours.

    Raises:
        SealError: a file is missing, or not as it was written; the message names it.
    """
    for level in LEVELS:
        for found in sorted(folder.glob(f"{level}{SEAL}")):
            check_seal(found.parent)


def check_seal(folder: Path) -> None:
    """Compare every file of one folder with its seal, if it has one; but for its card.

    Raises:
        SealError: a file is missing, or not as it was written; the message names it.
    """
    found = folder / SEAL
    for name, written in _read(found).items() if found.is_file() else ():
        if name != CARD:
            _check(folder / name, found, written)


def is_ours(folder: Path) -> bool:
    """Whether a folder is empty or was made by a stage."""
    return (folder / SEAL).is_file() or not any(folder.iterdir())


def xxh3(file: Path) -> str:
    """The XXH3 of a file's content."""
    digest = xxhash.xxh3_64()
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _read(file: Path) -> dict[str, str]:
    remedy = f"damaged: expected the hashes of the files beside it; {_remedy(file)}"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SealError(f"{file}: {remedy}") from error
    if not isinstance(found, dict) or not all(isinstance(written, str) for written in found.values()):
        raise SealError(f"{file}: {remedy}")
    return found


def _check(file: Path, seal: Path, written: str) -> None:
    if not file.is_file():
        raise SealError(f"{file}: missing; its stage wrote it: {_remedy(seal)}")
    if (found := xxh3(file)) != written:
        raise SealError(
            f"{file}: expected what its stage wrote, XXH3 {written}, found {found}: the file is damaged or was edited; "
            f"{_remedy(seal)}"
        )


def _remedy(seal: Path) -> str:
    return f"make it again with `dvc repro`, or remove {seal} if the change was intended"
