"""Prepared rows as Arrow IPC files: written whole, memory-mapped back, known by their digest."""

import hashlib
from pathlib import Path

import pyarrow as pa

from filbert.files import whole_file


def digest(table: pa.Table) -> str:
    """Twelve hex digits that change with any text, label or order of the rows."""
    columns = (table[name].combine_chunks().to_numpy(zero_copy_only=False) for name in ("hash", "label"))
    return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()[:12]


def write_table(table: pa.Table, file: Path) -> None:
    """Write `table` as an Arrow IPC file, whole or not at all."""
    with whole_file(file) as making, pa.OSFile(str(making), "wb") as sink, pa.ipc.new_file(sink, table.schema) as out:
        out.write_table(table)


def read_table(file: Path) -> pa.Table:
    """The Arrow IPC `file`, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
