"""Arrow IPC shards in a folder: streamed to disk batch by batch, listed with a checksum, memory-mapped back.

A shard counts once `manifest.json` lists it, so that a killed writer leaves nothing that could be mistaken for whole.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import xxhash

from filbert import FilbertError
from filbert.data.arrow import open_writer
from filbert.runtime.files import read_json, write_json

MANIFEST = "manifest.json"


class ShardError(FilbertError):
    """A shard is not what the manifest says."""


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says of one shard."""

    rows: int
    columns: tuple[str, ...]
    bytes: int
    xxh3: str


class ShardFolder:
    """The shards of one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        listed = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
        self.entries = {name: ShardEntry(**said | {"columns": tuple(said["columns"])}) for name, said in listed.items()}

    @property
    def has_manifest(self) -> bool:
        """Whether a writer has written a manifest here, if only to say that there is nothing."""
        return (self.folder / MANIFEST).exists()

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries.values())

    def append(self, columns: tuple[str, ...], schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        """Write one shard as its batches come, holding one at a time in memory, and list it."""
        number = max((int(name.split("-")[1].split(".")[0]) for name in self.entries), default=-1) + 1
        file, rows = self.folder / f"shard-{number:05d}.arrow", 0
        with open_writer(file, schema) as out:
            for batch in batches:
                out.write_batch(batch)
                rows += batch.num_rows
        self.entries[file.name] = ShardEntry(rows, columns, file.stat().st_size, _checksum(file))
        self.write()

    def drop(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        del self.entries[name]
        self.write()

    def remove_unlisted(self) -> None:
        """Remove what the manifest does not list: the remains of a killed writer."""
        for file in [*self.folder.glob("shard-*.arrow"), *self.folder.glob(".*-shard-*.arrow")]:
            if file.name not in self.entries:
                file.unlink()

    def open(self, name: str) -> pa.RecordBatchFileReader:
        """Map a shard, after checking that its bytes are those that were written.

        Raises:
            ShardError: it is missing, cut off, or changed.
        """
        file, entry = self.folder / name, self.entries[name]
        if not file.exists():
            raise ShardError(f"{file}: missing; {MANIFEST} lists it with {entry.rows} rows")
        if file.stat().st_size != entry.bytes:
            raise ShardError(f"{file}: damaged: expected {entry.bytes} bytes, found {file.stat().st_size}")
        if (found := _checksum(file)) != entry.xxh3:
            raise ShardError(f"{file}: damaged: expected checksum {entry.xxh3}, found {found}")
        return pa.ipc.open_file(pa.memory_map(str(file)))

    def write(self) -> None:
        """Write the manifest."""
        write_json(self.folder / MANIFEST, {name: asdict(entry) for name, entry in sorted(self.entries.items())})


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_64()
    with pa.memory_map(str(file)) as mapped:
        while part := mapped.read_buffer(1 << 24):
            digest.update(part)
    return digest.hexdigest()
