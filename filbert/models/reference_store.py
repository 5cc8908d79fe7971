"""The reference store: a teacher's outputs on its training rows, with the BM25 index that finds the row most similar to an input.

It lies in the folder `references` of a student that needs it at inference: memory-mapped numpy arrays and a BM25 index over tokens
(bm25s); no labels, nothing pickled. This file imports nothing of filbert: it travels with the student.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import torch
from torch import Tensor

FOLDER = "references"
ARRAYS = ("keys", "values")


class BM25Index:
    """BM25 (Lucene's variant) over the tokens of rows: rows that share the rare tokens of a query score high."""

    def __init__(self, bm25: bm25s.BM25):
        self.bm25 = bm25
        self.size = int(bm25.scores["num_docs"])
        self.vocab_size = len(bm25.scores["indptr"]) - 1

    @classmethod
    def of(cls, rows: list[list[int]]) -> "BM25Index":
        """Index rows of token ids."""
        bm25 = bm25s.BM25(method="lucene")
        vocabulary = {str(token): token for token in range(max(map(max, rows)) + 1)}
        bm25.index((rows, vocabulary), create_empty_token=False, show_progress=False)
        return cls(bm25)

    @classmethod
    def open(cls, folder: Path) -> "BM25Index":
        return cls(bm25s.BM25.load(folder, mmap=True))

    def save(self, folder: Path) -> None:
        self.bm25.save(folder, show_progress=False)

    def nearest(
        self, tokens: list[int], count: int, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `count` rows with the highest scores, and the scores, highest first; ties by row number, rows in `exclude` last."""
        scores = self.bm25.get_scores_from_ids([token for token in tokens if token < self.vocab_size])
        if exclude is not None:
            scores[exclude] = -np.inf
        count = min(count, self.size)
        rows = np.flatnonzero(scores >= -np.partition(-scores, count - 1)[count - 1])  # all that tie with the last
        rows = rows[np.lexsort((rows, -scores[rows]))][:count]
        return rows, scores[rows]


def token_hash(tokens: Sequence[int]) -> int:
    """A 64-bit hash of one row's token ids: two rows with the same tokens are not each other's reference."""
    return int.from_bytes(hashlib.blake2b(np.asarray(tokens, "<u4").tobytes(), digest_size=8).digest(), "little")


def random_rows(tokens: list[int], size: int, count: int, exclude: int | None = None) -> np.ndarray:
    """`count` of `size` row numbers that depend on the tokens alone, without `exclude`: the control for `nearest`."""
    drawn = np.random.default_rng(tokens).integers(size - (exclude is not None), size=count)
    return drawn if exclude is None else drawn + (drawn >= exclude)


class ReferenceStore:
    """A store opened for reading: token ids in, the teacher's outputs on their references out."""

    def __init__(self, folder: Path):
        """Map the store in `folder`.

        Raises:
            FileNotFoundError: there is none.
        """
        if not (folder / "store.json").exists():
            raise FileNotFoundError(
                f"{folder}: no reference store; this student reads its teacher's outputs on training rows at inference, so its "
                f"folder must be kept whole, with `{FOLDER}/` beside the weights"
            )
        self.folder = folder
        settings = json.loads((folder / "store.json").read_text())
        self.kind, self.count, self.width = settings["kind"], settings["count"], settings["width"]
        if self.kind != "zero":
            self.index = BM25Index.open(folder / "index")
            self.offsets, self.token_hashes = np.load(folder / "offsets.npy"), np.load(folder / "token_hashes.npy")
            self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
            scaled = self.arrays["keys"].dtype == np.int8
            self.scales = {name: np.load(folder / f"{name}.scale.npy", mmap_mode="r") for name in ARRAYS if scaled}

    def find(self, ids: Tensor, mask: Tensor) -> np.ndarray:
        """The references [B, count] of inputs with token ids [B, T] and mask [B, T]; none of the nearest has the same tokens."""
        rows = [row[real].tolist() for row, real in zip(ids.cpu(), mask.bool().cpu(), strict=True)]
        if self.kind == "random":
            return np.stack([random_rows(tokens, self.index.size, self.count) for tokens in rows])
        same = [np.flatnonzero(self.token_hashes == np.uint64(token_hash(tokens))) for tokens in rows]
        found = [self.index.nearest(tokens, self.count, rest)[0] for tokens, rest in zip(rows, same, strict=True)]
        return np.stack(found)

    def read(self, found: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [B, R, width] float32 and mask [B, R] of references [B, count], one after the other."""
        starts, lengths = self.offsets[found], self.offsets[found + 1] - self.offsets[found]
        column = np.arange(lengths.max())
        mask = column < lengths[..., None]  # [B, count, longest]
        at = np.where(mask, starts[..., None] + column, 0)
        keys, values = (self._vectors(name, at).flatten(1, 2) for name in ARRAYS)
        return keys, values, torch.from_numpy(mask).flatten(1)

    def _vectors(self, name: str, at: np.ndarray) -> Tensor:
        vectors = torch.from_numpy(self.arrays[name][at]).float()
        return vectors * torch.from_numpy(self.scales[name][at])[..., None] if self.scales else vectors

    def __call__(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and mask of the references of some inputs, on their device."""
        found = zero_reference(len(ids), self.width) if self.kind == "zero" else self.read(self.find(ids, mask))
        keys, values, reference_mask = (tensor.to(ids.device) for tensor in found)
        return keys, values, reference_mask

    def copy_to(self, folder: Path) -> None:
        if folder.resolve() != self.folder.resolve():
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)


def zero_reference(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The empty reference: one token whose key and value are zero."""
    return torch.zeros(rows, 1, width), torch.zeros(rows, 1, width), torch.ones(rows, 1, dtype=torch.bool)
