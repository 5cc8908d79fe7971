"""The reference of a row: the most similar *other* training row, found by BM25 over tokens; and what the teacher said of it.

Rows of any split look up training rows only, never themselves nor a row of the same tokens; labels are not read. "The most
similar sample, but not the input itself" is the paper's (Wang et al. 2021, RefBERT, arXiv 2106.08898, section 1); BM25 over
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
from filbert.cache.read import TeacherCache
from filbert.cache.targets import CachedTargets, quantize_int8
from filbert.data.arrow import read_table, write_table
from filbert.data.batches import TokenizedDataset
from filbert.data.tasks import Task
from filbert.evaluation import metrics
from filbert.models.reference_bert import REFERENCE
from filbert.models.reference_store import ARRAYS, BM25Index, random_rows, zero_reference
from filbert.runtime import progress
from filbert.runtime.files import atomic_folder, write_json

ReferenceKind = Literal["nearest", "random", "zero"]
CHUNK = 256  # rows turned into a store at a time


class RetrievalError(FilbertError):
    """The references do not belong to these rows, or are too few."""


@dataclass(frozen=True)
class RetrievalConfig:
    """How references are looked up."""

    most: int  # kept of each row, nearest first


@dataclass(frozen=True)
class ReferenceSettings:
    """How many references a student reads, and how they travel with it."""

    count: int  # of each row
    store: Literal["float16", "int8"]  # int8 with a scale per vector


def find_references(index: BM25Index, train: TokenizedDataset, rows: TokenizedDataset, most: int) -> pa.Table:
    """The `most` nearest training rows of each of `rows`, as positions in `train`, with their BM25 scores.

    Raises:
        ReferencesError: there are not so many others.
    """
    twins: dict[int, list[int]] = {}
    for position, tokens in enumerate(train.token_hashes.tolist()):
        twins.setdefault(tokens, []).append(position)
    found = []
    with progress.bar("references", len(rows)) as bar:
        for row, tokens in enumerate(rows.token_hashes.tolist()):
            found.append(index.nearest(row_tokens(rows, row), most, np.array(twins.get(tokens, []), np.int64)))
            bar.update(1)
    nearest, scores = (np.stack(part) for part in zip(*found, strict=True))
    if nearest.shape[1] < most or np.isneginf(scores).any():
        raise RetrievalError(
            f"expected {most} references of each row among {len(train)} training rows, itself and its like left out; some have "
            "fewer: lower references.most in params.yaml"
        )
    return pa.table(
        {
            "idx": rows.idx,
            "tokens": rows.token_hashes,
            "nearest": _fixed(nearest.astype(np.int32)),
            "score": _fixed(scores),
        }
    )


def neighbour_positions(found: pa.Table) -> np.ndarray:
    """[N, most] positions in the training rows, from what `look_up` found."""
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
    """What the label of the nearest training row alone would score: a control, and the one place that reads that label.

    Args:
        nearest: [N, …] positions in the training rows, nearest first.
    """
    guess = train_labels[nearest[:, 0]]
    logits = np.eye(task.outputs, dtype=np.float32)[guess] if task.labels else guess[:, None]
    return metrics.scores(task, logits, labels)["score"]


@dataclass(frozen=True)
class ReferenceTargets:
    """The teacher's words on the references of the rows of one split: what their batches carry beside their own."""

    pick: ReferenceKind
    at: np.ndarray  # [N, count] positions in the training rows
    lengths: np.ndarray  # [training rows] tokens
    words: CachedTargets  # on the training rows
    columns: tuple[str, str]  # the teacher's embedding output and its last states

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        """`reference_keys`, `reference_values` [B, R, Dt] and `reference_mask` [B, R] of some rows."""
        width = self.words.columns[self.columns[0]].width
        if self.pick == "zero":
            found: tuple[Tensor, ...] = zero_reference(len(rows), width)
        else:
            at = self.at[rows]
            dense = self.words.take(at.ravel(), self.columns)
            lengths = self.lengths[at]
            mask = torch.from_numpy(np.arange(lengths.max()) < lengths[..., None])
            found = (*(dense[c].view(*mask.shape, width).flatten(1, 2) for c in self.columns), mask.flatten(1))
        return dict(zip(REFERENCE, found, strict=True))


@dataclass(frozen=True)
class ReferenceReader:
    """References as a method meets them: looked up before, read from the cache."""

    folder: Path
    cache: TeacherCache
    train: TokenizedDataset
    columns: tuple[str, str]
    pick: ReferenceKind
    config: ReferenceSettings

    def of(self, split: str, rows: TokenizedDataset) -> ReferenceTargets:
        """The references of the rows of a split.

        Raises:
            ReferencesError: they were looked up for other rows, or fewer were kept than are wanted.
        """
        at = self._nearest(split, rows)
        if self.pick == "random":
            own = np.arange(len(rows)) if split == "train" else None
            at = np.stack([
                random_rows(row_tokens(rows, row), len(self.train), self.config.count, own[row] if own is not None else None)
                for row in range(len(rows))
            ])  # fmt: skip
        words = self.cache.on(self.train, self.columns)
        return ReferenceTargets(self.pick, at[:, : self.config.count], self.train.lengths, words, self.columns)

    def _nearest(self, split: str, rows: TokenizedDataset) -> np.ndarray:
        for name, expected in {"train": self.train, split: rows}.items():
            table = read_table(self.folder / f"{name}.arrow")
            if not np.array_equal(table["tokens"].to_numpy(), expected.token_hashes):
                raise RetrievalError(f"{self.folder / name}.arrow: looked up for other rows; run `dvc repro`")
        found = neighbour_positions(table)
        if found.shape[1] < self.config.count:
            raise RetrievalError(
                f"{self.folder}: expected {self.config.count} references of each row, found {found.shape[1]}; raise "
                "references.most in params.yaml"
            )
        return found

    def write_store(self, folder: Path) -> None:
        """Write what a student needs at inference: the words on every training row, and the index that finds them."""
        with atomic_folder(folder) as making:
            self._write_store(making)

    def _write_store(self, folder: Path) -> None:
        words = self.cache.on(self.train, self.columns)
        width = words.columns[self.columns[0]].width
        about = {"pick": self.pick, "count": self.config.count, "width": width}
        write_json(folder / "store.json", about)
        if self.pick == "zero":
            return
        shutil.copytree(self.folder / "index", folder / "index")
        np.save(folder / "offsets.npy", self.train.offsets)
        np.save(folder / "tokens.npy", self.train.token_hashes)
        for name, column in zip(ARRAYS, self.columns, strict=True):
            self._write_vectors(folder, name, words, column, width)

    def _write_vectors(self, folder: Path, name: str, words: CachedTargets, column: str, width: int) -> None:
        offsets, small = self.train.offsets, self.config.store == "int8"
        open_new = np.lib.format.open_memmap
        out = open_new(folder / f"{name}.npy", "w+", np.int8 if small else np.float16, (int(offsets[-1]), width))
        scales = open_new(folder / f"{name}.scale.npy", "w+", np.float32, (int(offsets[-1]),)) if small else None
        for start in range(0, len(self.train), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(self.train)))
            lengths = self.train.lengths[rows]
            vectors = words.take(rows, (column,))[column].float().numpy()[np.arange(lengths.max()) < lengths[:, None]]
            place = slice(offsets[rows[0]], offsets[rows[-1] + 1])
            if scales is not None:
                vectors, scales[place] = quantize_int8(vectors)
            out[place] = vectors


def _fixed(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
