"""References: for each row the most similar *other* training row, found by BM25 over tokens, and the teacher's outputs on it.

A reference is always a training row, never the row itself, and of the nearest none has the same tokens; labels are not read. "The
most similar sample, but not the input itself" is the paper's (Wang et al. 2021, RefBERT, arXiv 2106.08898, section 1); BM25 over
tokens is our reconstruction of its "most common keywords". `random` and `zero` are the controls.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from filbert import FilbertError
from filbert.cache.cached_targets import CachedTargets, quantize_int8
from filbert.cache.teacher_cache import TeacherCache
from filbert.data.arrow import read_table, write_table
from filbert.data.batches import TokenizedDataset
from filbert.data.tasks import Task, TaskKind
from filbert.evaluation import metrics
from filbert.models.reference_bert import REFERENCE
from filbert.models.reference_store import ARRAYS, BM25Index, random_rows, token_hash, zero_reference
from filbert.runtime import progress
from filbert.runtime.config import PositiveInt
from filbert.runtime.files import atomic_folder, write_json

ReferenceKind = Literal["nearest", "random", "zero"]
CHUNK = 256  # rows written to a store at a time


class RetrievalError(FilbertError):
    """References belong to other rows, or are too few."""


@dataclass(frozen=True)
class RetrievalConfig:
    """How references are found."""

    max_references: PositiveInt  # of each row, nearest first


@dataclass(frozen=True)
class ReferenceSettings:
    """How many references a student reads, and how its store holds them."""

    count: PositiveInt  # references of each row
    store: Literal["float16", "int8"]  # int8 has a scale per vector


def find_references(index: BM25Index, train: TokenizedDataset, rows: TokenizedDataset, most: int) -> pa.Table:
    """The `most` nearest training rows of each of `rows`, as positions in `train`, with their BM25 scores.

    Raises:
        RetrievalError: a row has fewer than `most` others.
    """
    same: dict[int, list[int]] = {}  # training rows by the hash of their tokens
    for position, key in enumerate(train.token_hashes.tolist()):
        same.setdefault(key, []).append(position)
    found = []
    with progress.bar("references", len(rows)) as bar:
        for row, key in enumerate(rows.token_hashes.tolist()):
            found.append(index.nearest(row_tokens(rows, row), most, np.array(same.get(key, []), np.int64)))
            bar.update(1)
    nearest, scores = (np.stack(part) for part in zip(*found, strict=True))
    if nearest.shape[1] < most or np.isneginf(scores).any():
        raise RetrievalError(
            f"expected {most} references of each row among {len(train)} training rows, without the row itself and rows with the "
            "same tokens; some rows have fewer: lower references.max_references in params.yaml"
        )
    columns = {"nearest": _fixed_size(nearest.astype(np.int32)), "score": _fixed_size(scores)}
    return pa.table({"idx": rows.idx, "tokens": rows.token_hashes, **columns})


def neighbour_positions(found: pa.Table) -> np.ndarray:
    """[N, most] positions in the training rows, of a table of `find_references`."""
    column = found["nearest"].combine_chunks()
    return column.values.to_numpy().reshape(len(column), -1)


def build_index(train: TokenizedDataset) -> BM25Index:
    """The index of all training rows."""
    return BM25Index.of([row_tokens(train, row) for row in range(len(train))])


def row_tokens(rows: TokenizedDataset, row: int) -> list[int]:
    return rows.ids[rows.offsets[row] : rows.offsets[row + 1]].tolist()


def save_references(folder: Path, index: BM25Index, tables: dict[str, pa.Table]) -> None:
    """Write the index and the references of each split."""
    index.save(folder / "index")
    for name, table in tables.items():
        write_table(table, folder / f"{name}.arrow")


def nearest_label_score(task: Task, nearest: np.ndarray, train_labels: np.ndarray, labels: np.ndarray) -> float:
    """The score of predicting each row's label by that of its nearest training row: a control, the only use of that label.

    Args:
        nearest: [N, …] positions in the training rows, nearest first.
    """
    guess = train_labels[nearest[:, 0]]
    if task.kind is TaskKind.MULTILABEL:
        return metrics.scores(task, guess - 0.5, labels)["score"]
    logits = np.eye(task.outputs, dtype=np.float32)[guess] if task.labels else guess[:, None]
    return metrics.scores(task, logits, labels)["score"]


def reference_columns(teacher_layers: int) -> tuple[str, str]:
    """What is read of a reference: the teacher's embedding output as key, its last hidden states as value (our reconstruction)."""
    return "hidden.0", f"hidden.{teacher_layers}"


@dataclass(frozen=True)
class ReferenceTargets:
    """The teacher's outputs on the references of the rows of one split: what their batches carry as targets."""

    kind: ReferenceKind
    nearest: np.ndarray  # [N, count] positions in the training rows
    lengths: np.ndarray  # [training rows] tokens
    targets: CachedTargets  # of the training rows
    columns: tuple[str, str]  # the teacher's embedding output and its last hidden states

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        """`reference_keys`, `reference_values` [B, R, Dt] and `reference_mask` [B, R] of some rows."""
        width = self.targets.columns[self.columns[0]].width
        if self.kind == "zero":
            tensors: tuple[Tensor, ...] = zero_reference(len(rows), width)
        else:
            references = self.nearest[rows]
            dense = self.targets.take(references.ravel(), self.columns)
            lengths = self.lengths[references]
            mask = torch.from_numpy(np.arange(lengths.max()) < lengths[..., None])
            tensors = (*(dense[c].view(*mask.shape, width).flatten(1, 2) for c in self.columns), mask.flatten(1))
        return dict(zip(REFERENCE, tensors, strict=True))


@dataclass(frozen=True)
class ReferenceReader:
    """References as a method uses them: found before, read from the teacher's cache."""

    folder: Path
    cache: TeacherCache
    train: TokenizedDataset
    columns: tuple[str, str]
    kind: ReferenceKind
    config: ReferenceSettings

    def of(self, split: str, rows: TokenizedDataset) -> ReferenceTargets:
        """The references of the rows of a split.

        Raises:
            RetrievalError: they were found for other rows, or are fewer than `config.count`.
        """
        nearest = self._nearest(split, rows)
        if self.kind == "random":
            own = np.arange(len(rows)) if split == "train" else None
            nearest = np.stack([
                random_rows(row_tokens(rows, row), len(self.train), self.config.count, own[row] if own is not None else None)
                for row in range(len(rows))
            ])  # fmt: skip
        targets = self.cache.on(self.train, self.columns)
        return ReferenceTargets(self.kind, nearest[:, : self.config.count], self.train.lengths, targets, self.columns)

    def _nearest(self, split: str, rows: TokenizedDataset) -> np.ndarray:
        for name, expected in {"train": self.train, split: rows}.items():
            table = read_table(self.folder / f"{name}.arrow")
            if not np.array_equal(table["tokens"].to_numpy(), expected.token_hashes):
                raise RetrievalError(f"{self.folder / name}.arrow: references of other rows; run `dvc repro`")
        nearest = neighbour_positions(table)
        if nearest.shape[1] < self.config.count:
            raise RetrievalError(
                f"{self.folder}: expected {self.config.count} references of each row, found {nearest.shape[1]}; raise "
                "references.max_references in params.yaml"
            )
        return nearest

    def write_store(self, folder: Path) -> None:
        """Write what a student needs at inference: the teacher's outputs on every training row, and the index that finds a row."""
        with atomic_folder(folder, sealed=False) as making:
            self._write_store(making)

    def _write_store(self, folder: Path) -> None:
        targets = self.cache.on(self.train, self.columns)
        width = targets.columns[self.columns[0]].width
        write_json(folder / "store.json", {"kind": self.kind, "count": self.config.count, "width": width})
        if self.kind == "zero":
            return
        shutil.copytree(self.folder / "index", folder / "index")
        hashes = [token_hash(row_tokens(self.train, row)) for row in range(len(self.train))]
        np.save(folder / "token_hashes.npy", np.array(hashes, np.uint64))
        np.save(folder / "offsets.npy", self.train.offsets)
        for name, column in zip(ARRAYS, self.columns, strict=True):
            self._write_vectors(folder, name, targets, column, width)

    def _write_vectors(self, folder: Path, name: str, targets: CachedTargets, column: str, width: int) -> None:
        offsets, int8 = self.train.offsets, self.config.store == "int8"
        open_new = np.lib.format.open_memmap
        out = open_new(folder / f"{name}.npy", "w+", np.int8 if int8 else np.float16, (int(offsets[-1]), width))
        scales = open_new(folder / f"{name}.scale.npy", "w+", np.float32, (int(offsets[-1]),)) if int8 else None
        for start in range(0, len(self.train), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(self.train)))
            lengths = self.train.lengths[rows]
            dense = targets.take(rows, (column,))[column].float().numpy()
            vectors = dense[np.arange(lengths.max()) < lengths[:, None]]
            span = slice(offsets[rows[0]], offsets[rows[-1] + 1])
            if scales is not None:
                vectors, scales[span] = quantize_int8(vectors)
            out[span] = vectors


def _fixed_size(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
