"""Prepared rows as Arrow IPC files: written atomically, memory-mapped when read, identified by a digest."""

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
TEACHER_COLUMN = "teacher"  # the column of probabilities, of a task with teacher_columns
ROWS_AT_A_TIME = 4096  # rows in memory while a file is written


def row_schema(task: Task) -> pa.Schema:
    """The columns of a prepared table: idx, the texts, label, hash, and the probabilities of a task with teacher_columns."""
    label = {
        TaskKind.MULTILABEL: pa.list_(pa.int8(), len(task.labels)),  # 1 where a label applies
        TaskKind.REGRESSION: pa.float32(),
        TaskKind.TAGGING: pa.list_(pa.int32()),
    }.get(task.kind, pa.int32())
    texts = [(name, pa.string()) for name in task.columns]
    imported = [(TEACHER_COLUMN, pa.list_(pa.float32(), task.outputs))] if task.teacher_columns else []
    return pa.schema([("idx", pa.int32()), *texts, ("label", label), ("hash", pa.int64()), *imported])


def texts_of(table: pa.Table, task: Task) -> list[tuple[str, ...]]:
    """The texts of each row, one for each column of its task."""
    return list(zip(*(table[name].to_pylist() for name in task.columns), strict=True))


def fixed_lists(column: pa.FixedSizeListArray) -> np.ndarray:
    """Lists of one length, such as the labels of multilabel rows, as float32 [N, C]; NaN throughout a row that has none."""
    out = np.full((len(column), column.type.list_size), np.nan, np.float32)
    known = column.is_valid().to_numpy(zero_copy_only=False)
    out[known] = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    return out


@dataclass(frozen=True)
class Partition:
    """How many partitions the cache and the augmentation of a task are made in, each a stage with a folder of its own."""

    count: int
    indices: tuple[int, ...]  # 0 to `count` - 1, written out because a matrix of dvc.yaml needs a list

    def __post_init__(self) -> None:
        if self.count < 1 or self.indices != tuple(range(self.count)):
            wanted = [*range(max(1, self.count))]
            raise FilbertError(f"partitions: expected indices {wanted} for count {self.count}, got {[*self.indices]}")

    def share(self, table: pa.Table, index: int) -> pa.Table:
        """The rows of one partition, drawn by a hash of their text, so that new rows move no other row.

        Raises:
            FilbertError: there is no such partition.
        """
        if index not in self.indices:
            raise FilbertError(f"expected a partition below partitions.count = {self.count}, got {index}")
        if self.count == 1:
            return table
        of_row = table["hash"].to_numpy().view(np.uint64) % np.uint64(self.count)
        return table.filter(pa.array(of_row == index))

    def folders(self, parent: Path) -> list[Path]:
        """The folders of all partitions."""
        return [parent / str(index) for index in self.indices]


def rows_digest(table: pa.Table) -> str:
    """Twelve hex digits that change with any text, label or order of the rows."""
    label = table["label"].combine_chunks()
    nested = pa.types.is_list(label.type) or pa.types.is_fixed_size_list(label.type)
    flat = label.flatten() if nested else label
    columns = (column.to_numpy(zero_copy_only=False) for column in (table["hash"].combine_chunks(), flat))
    return hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest()[:12]


@contextmanager
def open_writer(file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchFileWriter]:
    """A writer of an Arrow IPC file, which appears when the block succeeds."""
    with atomic_file(file) as making, pa.OSFile(str(making), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        yield out


def write_table(table: pa.Table, file: Path) -> None:
    """Write `table` as an Arrow IPC file, atomically."""
    with open_writer(file, table.schema) as out:
        out.write_table(table)


def write_rows(rows: Iterable[Row], task: Task, file: Path) -> int:
    """Write rows as they come, some in memory at a time, as `write_table` does; returns their number."""
    schema, count = row_schema(task), 0
    with open_writer(file, schema) as out:
        left = iter(rows)
        while part := list(islice(left, ROWS_AT_A_TIME)):
            out.write_table(pa.Table.from_pylist(part, schema=schema))
            count += len(part)
    return count


def read_table(file: Path) -> pa.Table:
    """The Arrow IPC `file`, memory-mapped.

    Raises:
        FilbertError: it is none.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except pa.ArrowException as error:
        what = next(iter(str(error).splitlines()), "")
        raise FilbertError(
            f"{file}: damaged: expected an Arrow file, got {what}; make it again with `dvc repro`"
        ) from error


def split_names(prepared: Path, *kinds: str) -> list[str]:
    """The splits in a folder of prepared rows whose names begin with one of `kinds`: a task may have several `test…`."""
    return sorted(file.stem for file in prepared.glob("*.arrow") if file.stem.startswith(kinds))


def evenly_spaced(rows: int, count: int) -> np.ndarray:
    """`count` of the row numbers below `rows`, evenly spaced; all if there are no more."""
    return np.linspace(0, rows - 1, min(count, rows)).astype(int)
