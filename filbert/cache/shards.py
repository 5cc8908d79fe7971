"""Arrow IPC shards in a folder: written batch by batch, listed with a checksum in `manifest.json`, memory-mapped for reading.

A shard is valid once the manifest lists it, so that a killed writer leaves nothing that could be taken for complete.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import pyarrow as pa

from filbert import FilbertError
from filbert.data.arrow import open_writer
from filbert.runtime import progress, seals
from filbert.runtime.files import read_json, write_json

MANIFEST = "manifest.json"
NAME = re.compile(r"shard-\d{5}\.arrow")  # a manifest that names other files could have them opened or deleted


class ShardError(FilbertError):
    """A shard differs from its entry in the manifest, or the manifest cannot be read."""


@dataclass(frozen=True)
class ShardEntry:
    """One shard in the manifest."""

    rows: int
    columns: tuple[str, ...]
    bytes: int
    xxh3: str


class ShardFolder:
    """The shards of one folder."""

    def __init__(self, folder: Path):
        """Read the manifest in `folder`, if there is one.

        Raises:
            ShardError: it cannot be read, or names a file that is no shard.
        """
        self.folder = folder
        self.entries = _read_manifest(folder / MANIFEST) if self.has_manifest else {}

    @classmethod
    def for_writing(cls, folder: Path) -> "ShardFolder":
        """The shards of a folder; a manifest that cannot be read is renamed, and all shards will be made again.

        Raises:
            ShardError: the folder holds something else.
        """
        known = (path.name == MANIFEST or NAME.fullmatch(path.name) or path.name[0] == "." for path in folder.iterdir())
        if not all(known):
            raise ShardError(f"{folder}: expected a folder that holds the shards of a cache alone; name another folder")
        try:
            return cls(folder)
        except ShardError as error:
            aside = folder.with_name(f".{folder.name}.{MANIFEST}.damaged")
            os.replace(folder / MANIFEST, aside)
            progress.log(f"{error}; moved to {aside.name}, all shards are made again")
            return cls(folder)

    @property
    def has_manifest(self) -> bool:
        """Whether a writer has finished here, if only without any row."""
        return (self.folder / MANIFEST).exists()

    @property
    def bytes(self) -> int:
        """The bytes of all listed shards."""
        return sum(entry.bytes for entry in self.entries.values())

    def append(self, columns: tuple[str, ...], schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        """Write the batches to a new shard, with one at a time in memory, and list it; in place of a dropped one if there is any,
        so that what is made again is the same folder."""
        file, rows = (
            self.folder / next(name for name in map("shard-{:05d}.arrow".format, count()) if name not in self.entries),
            0,
        )
        with open_writer(file, schema) as out:
            for batch in batches:
                out.write_batch(batch)
                rows += batch.num_rows
        self.entries[file.name] = ShardEntry(rows, columns, file.stat().st_size, seals.xxh3(file))
        self.write()

    def drop(self, name: str) -> None:
        """Delete a listed shard."""
        (self.folder / name).unlink(missing_ok=True)
        del self.entries[name]
        self.write()

    def remove_unlisted(self) -> None:
        """Delete shards that the manifest does not list: what a killed writer left."""
        for file in [*self.folder.glob("shard-*.arrow"), *self.folder.glob(".*-shard-*.arrow")]:
            if file.name not in self.entries:
                file.unlink()

    def check_sizes(self) -> None:
        """Compare the files with the manifest, without reading them.

        Raises:
            ShardError: one is missing, or of another size.
        """
        for name in self.entries:
            self._check_size(name)

    def open(self, name: str) -> pa.RecordBatchFileReader:
        """Map a shard after checking its size and checksum.

        Raises:
            ShardError: it is missing, truncated, or changed.
        """
        file, entry = self._check_size(name), self.entries[name]
        if (found := seals.xxh3(file)) != entry.xxh3:
            raise ShardError(f"{file}: damaged: expected checksum {entry.xxh3}, found {found}")
        return pa.ipc.open_file(pa.memory_map(str(file)))

    def _check_size(self, name: str) -> Path:
        file, entry = self.folder / name, self.entries[name]
        if not file.exists():
            raise ShardError(f"{file}: missing; {MANIFEST} lists it with {entry.rows} rows")
        if file.stat().st_size != entry.bytes:
            raise ShardError(f"{file}: damaged: expected {entry.bytes} bytes, found {file.stat().st_size}")
        return file

    def write(self) -> None:
        """Write the manifest."""
        write_json(self.folder / MANIFEST, {name: asdict(entry) for name, entry in sorted(self.entries.items())})


def _read_manifest(file: Path) -> dict[str, ShardEntry]:
    """The entries of a manifest by the names of their shards.

    Raises:
        ShardError: it is no manifest, or names a file that is no shard.
    """
    try:
        listed = {
            name: ShardEntry(**entry | {"columns": tuple(entry["columns"])}) for name, entry in read_json(file).items()
        }
    except (FilbertError, OSError, TypeError, KeyError, AttributeError) as error:
        raise ShardError(f"{file}: damaged: expected a manifest of shards ({type(error).__name__}: {error})") from error
    if wrong := next((name for name in listed if not NAME.fullmatch(name)), None):
        raise ShardError(f"{file}: damaged: expected names like shard-00000.arrow, got {wrong!r}")
    return listed
