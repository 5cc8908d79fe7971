"""A teacher without weights: probabilities in the task's own file, such as a language model's answers.

They become the logits log p of a stand-in model, so that the cache is filled, verified and read as that of any teacher.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from filbert.cache.teacher_cache import CacheError, Fingerprint
from filbert.data.arrow import TEACHER_COLUMN, fixed_lists, read_table
from filbert.data.batches import TokenizedDataset
from filbert.data.tasks import Task

COLUMNS = ("logits",)  # of the cache: there are no states
LEAST = 1e-6  # a smaller probability counts as this one: its logarithm would be infinite


class ImportedTeacher(nn.Module):
    """Answers each row with the logits that its batch carries."""

    config = SimpleNamespace(num_hidden_layers=0)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, imported: Tensor) -> SequenceClassifierOutput:
        """The logits [B, C] of the rows."""
        return SequenceClassifierOutput(logits=imported)


@dataclass(frozen=True)
class ImportedLogits:
    """The imported logits of some rows."""

    hash: np.ndarray  # [N] int64, of the rows' texts
    logits: np.ndarray  # [N, C] float32; NaN where a row has none

    @classmethod
    def of(cls, prepared: Path, task: Task) -> "ImportedLogits | None":
        """Those of a task's training rows and of its rows without a label; None of a task whose teacher has weights."""
        if not task.teacher_columns:
            return None
        files = (prepared / f"{name}.arrow" for name in ("train", "unlabelled"))
        tables = [read_table(file) for file in files if file.exists()]
        shares = np.concatenate([fixed_lists(table[TEACHER_COLUMN].combine_chunks()) for table in tables])
        logits = np.log(np.maximum(shares, np.float32(LEAST)))
        return cls(np.concatenate([table["hash"].to_numpy() for table in tables]), logits)

    def fingerprint(self, key: Fingerprint) -> Fingerprint:
        """The fingerprint of a cache of these logits in place of the trained teacher's."""
        return replace(key, teacher=hashlib.sha256(self.hash.tobytes() + self.logits.tobytes()).hexdigest())

    def join(self, rows: TokenizedDataset) -> TokenizedDataset:
        """The rows with the logits of the same texts.

        Raises:
            CacheError: a row has none.
        """
        order = np.argsort(self.hash, kind="stable")
        found = order[np.minimum(np.searchsorted(self.hash, rows.hash, sorter=order), len(order) - 1)]
        missing = (self.hash[found] != rows.hash) | np.isnan(self.logits[found]).any(-1)
        if missing.any():
            raise CacheError(
                f"{missing.sum()} of {len(rows)} rows have no probabilities in the task's teacher_columns, the first is idx "
                f"{rows.idx[missing][0]}; fill them, and leave `augment.variants` at 0: nothing predicts for other texts"
            )
        return rows.with_targets(ImportedLogits(rows.hash, self.logits[found]))

    def take(self, rows: np.ndarray) -> Mapping[str, Tensor]:
        """The logits [B, C] of the rows at these positions, as ImportedTeacher reads them."""
        return {"imported": torch.from_numpy(self.logits[rows])}


def answering(
    teacher: nn.Module, key: Fingerprint, prepared: Path, task: Task
) -> tuple[nn.Module, Fingerprint, Callable[[TokenizedDataset], TokenizedDataset]]:
    """What a task's cache is filled and verified by: a model, the fingerprint, and how rows get what that model reads; the trained
    `teacher`, its `key` and rows as they are, unless the task has imported probabilities."""
    given = ImportedLogits.of(prepared, task)
    return (ImportedTeacher(), given.fingerprint(key), given.join) if given else (teacher, key, lambda rows: rows)


def check_columns(student: str, wanted: Sequence[str]) -> None:
    """Refuse a student that needs more of its teacher than logits.

    Raises:
        CacheError: names what it needs.
    """
    if more := [column for column in wanted if column not in COLUMNS]:
        raise CacheError(
            f"{student}: expected a method that learns from logits alone, as this task's teacher is its teacher_columns; it also "
            f"reads {', '.join(more)}. kd, and xtremedistil with `learn_representation: false`, learn from logits"
        )
