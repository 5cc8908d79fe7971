"""One row per test row in Parquet, what verdicts are computed from: `split`, `idx`, `label`, `logits`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filbert import FilbertError
from filbert.data.batches import TokenizedDataset
from filbert.data.tasks import Task, TaskKind
from filbert.evaluation.metrics import by_word
from filbert.runtime.files import atomic_file


@dataclass(frozen=True)
class Predictions:
    """The rows of one test set and what a model said of them."""

    label: np.ndarray  # [N] int32 or float32, of multilabel rows [N, C] int32; for tagging [words] int32, ragged
    logits: np.ndarray  # [N, C] float32; for tagging [words, C]
    offsets: np.ndarray  # [N + 1] int64: row i is `label[offsets[i]:offsets[i + 1]]`

    def __len__(self) -> int:
        return len(self.offsets) - 1


def write_predictions(file: Path, task: Task, splits: Mapping[str, tuple[np.ndarray, TokenizedDataset]]) -> None:
    """Write by test set logits [N, C] and their rows; in tagging, logits [tokens, C], of which those of words are kept."""
    with atomic_file(file) as making:
        pq.write_table(pa.concat_tables(_table(task, name, *split) for name, split in splits.items()), making)


def _table(task: Task, split: str, logits: np.ndarray, rows: TokenizedDataset) -> pa.Table:
    label = pa.array(rows.label.astype(np.float32 if task.kind is TaskKind.REGRESSION else np.int32).ravel())
    of_row, offsets = logits, np.arange(len(rows) + 1)
    if task.kind is TaskKind.MULTILABEL:
        label = pa.ListArray.from_arrays((offsets * task.outputs).astype(np.int32), label)
    if task.kind is TaskKind.TAGGING:
        assert rows.tags is not None
        of_row, offsets = by_word(logits, rows), rows.tags
        label = pa.ListArray.from_arrays(offsets.astype(np.int32), label)
    ends = (offsets * logits.shape[1]).astype(np.int32)
    lists = pa.ListArray.from_arrays(ends, of_row.astype(np.float32).ravel())
    return pa.table({"split": [split] * len(rows), "idx": rows.idx, "label": label, "logits": lists})


def read_predictions(file: Path, task: Task) -> dict[str, Predictions]:
    """The rows of `file` by test set, in the order in which they were written.

    Raises:
        FilbertError: it is damaged.
    """
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        what = next(iter(str(error).splitlines()), "")
        raise FilbertError(f"{file}: expected rows in Parquet, got {what}; make it again with `dvc repro`") from error
    splits = table["split"].to_numpy()
    return {name: _predictions(table.filter(pa.array(splits == name)), task) for name in dict.fromkeys(splits)}


def _predictions(table: pa.Table, task: Task) -> Predictions:
    label, logits = (table[name].combine_chunks() for name in ("label", "logits"))
    offsets = np.arange(len(table) + 1)
    if task.kind is TaskKind.TAGGING:
        offsets, label = np.cumsum([0, *label.value_lengths().to_numpy()]), label.flatten()
    numbers = (
        label.flatten().to_numpy().reshape(-1, task.outputs) if task.kind is TaskKind.MULTILABEL else label.to_numpy()
    )
    return Predictions(numbers, logits.flatten().to_numpy().reshape(-1, task.outputs), offsets)
