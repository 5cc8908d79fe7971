"""Prepared rows as Arrow IPC files: written whole, memory-mapped back, known by their digest."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filbert import FilbertError
from filbert.data.tasks import Task, TaskKind
from filbert.runtime.files import atomic_file

Row = dict[str, Any]  # idx, the text columns of the task, label (None where there is none), hash
WRITTEN = 4096  # rows held at a time


def row_schema(task: Task) -> pa.Schema:
    """What a prepared row of a task is."""
    label = {TaskKind.REGRESSION: pa.float32(), TaskKind.TAGGING: pa.list_(pa.int32())}.get(task.kind, pa.int32())
    texts = [(name, pa.string()) for name in task.columns]
    return pa.schema([("idx", pa.int32()), *texts, ("label", label), ("hash", pa.int64())])


@dataclass(frozen=True)
class Partition:
    """A cache or an augmentation in parts: each is a folder of its own in that of the whole."""

    of: int
    each: tuple[int, ...]  # 0 to `of` - 1, written out because DVC needs them so

    def __post_init__(self) -> None:
        if self.of < 1 or self.each != tuple(range(self.of)):
            raise FilbertError(f"parts: expected of {self.of} each {[*range(max(1, self.of))]}, got {[*self.each]}")

    def share(self, table: pa.Table, part: int) -> pa.Table:
        """The rows that fall to a part, by their text, so that new rows change no other part's.

        Raises:
            FilbertError: there is no such part.
        """
        if part not in self.each:
            raise FilbertError(f"expected a part below parts.of = {self.of}, got {part}")
        if self.of == 1:
            return table
        of = table["hash"].to_numpy().view(np.uint64) % np.uint64(self.of)
        return table.filter(pa.array(of == part))

    def folders(self, whole: Path) -> list[Path]:
        return [whole / str(part) for part in self.each]


def rows_digest(table: pa.Table) -> str:
    """Twelve hex digits that change with any text, label or order of the rows."""
    label = table["label"].combine_chunks()
    flat = label.flatten() if pa.types.is_list(label.type) else label
    columns = (column.to_numpy(zero_copy_only=False) for column in (table["hash"].combine_chunks(), flat))
    return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()[:12]


@contextmanager
def open_writer(file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchFileWriter]:
    """An Arrow IPC file to write batches to, whole or not at all."""
    with atomic_file(file) as making, pa.OSFile(str(making), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        yield out


def write_table(table: pa.Table, file: Path) -> None:
    """Write `table` as an Arrow IPC file, whole or not at all."""
    with open_writer(file, table.schema) as out:
        out.write_table(table)


def write_rows(rows: Iterable[Row], task: Task, file: Path) -> int:
    """Write rows as they come, some in memory at a time, as `write_table` does; how many they were."""
    form, count = row_schema(task), 0
    with open_writer(file, form) as out:
        left = iter(rows)
        while part := list(islice(left, WRITTEN)):
            out.write_table(pa.Table.from_pylist(part, schema=form))
            count += len(part)
    return count


def read_table(file: Path) -> pa.Table:
    """The Arrow IPC `file`, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
