"""The reference store: what a teacher said of its training rows, with the index that finds the row most like an input.

It lies in the folder `references` of a student that needs it at inference: memory-mapped numpy arrays and a BM25 index
over tokens (bm25s), no labels, nothing pickled. This file stands alone: it travels with the student.
"""

import json
import shutil
from pathlib import Path

import bm25s
import numpy as np
import torch
from torch import Tensor

FOLDER = "references"
REFERENCE_KINDS = ("nearest", "random", "zero")
ARRAYS = ("keys", "values")


class BM25Index:
    """BM25 (Lucene's variant) over the tokens of rows: which rows share the rare tokens of a query."""

    def __init__(self, bm25: bm25s.BM25):
        self.bm25 = bm25
        self.size = int(bm25.scores["num_docs"])
        self.known = len(bm25.scores["indptr"]) - 1

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

    def nearest(self, tokens: list[int], count: int, but: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The `count` best rows and their scores, best first, equal ones in their order; rows in `but` score -inf."""
        scores = self.bm25.get_scores_from_ids([token for token in tokens if token < self.known])
        if but is not None:
            scores[but] = -np.inf
        count = min(count, self.size)
        found = np.flatnonzero(scores >= -np.partition(-scores, count - 1)[count - 1])  # all that tie with the last
        found = found[np.lexsort((found, -scores[found]))][:count]
        return found, scores[found]


def hash_terms(tokens: np.ndarray, place: np.ndarray) -> np.ndarray:
    """uint64, one of each token at its place in its row; their sum is the row's hash."""
    powers = np.cumprod(np.full(int(place.max(initial=0)) + 1, 0x9E3779B97F4A7C15, np.uint64))
    return (tokens.astype(np.uint64) + np.uint64(1)) * powers[place]


def random_rows(tokens: list[int], size: int, count: int, but: int | None = None) -> np.ndarray:
    """`count` of `size` rows that depend on nothing but the tokens, `but` not among them: the control for `nearest`."""
    drawn = np.random.default_rng(tokens).integers(size - (but is not None), size=count)
    return drawn if but is None else drawn + (drawn >= but)


class ReferenceStore:
    """Opened for reading: ids in, the teacher's words on the references out."""

    def __init__(self, folder: Path):
        """Map the store in `folder`.

        Raises:
            FileNotFoundError: there is none.
        """
        if not (folder / "store.json").exists():
            raise FileNotFoundError(
                f"{folder}: no reference store; this student reads its teacher's words on training rows at inference, so its "
                f"folder must be kept whole, with `{FOLDER}/` beside the weights"
            )
        self.folder = folder
        said = json.loads((folder / "store.json").read_text())
        self.pick, self.count, self.width = said["pick"], said["count"], said["width"]
        if self.pick != "zero":
            self.index = BM25Index.open(folder / "index")
            self.offsets, self.token_hashes = np.load(folder / "offsets.npy"), np.load(folder / "tokens.npy")
            self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
            scaled = self.arrays["keys"].dtype == np.int8
            self.scales = {name: np.load(folder / f"{name}.scale.npy", mmap_mode="r") for name in ARRAYS if scaled}

    def find(self, ids: Tensor, mask: Tensor) -> np.ndarray:
        """The references [B, count] of inputs with tokens `ids` [B, T], real where `mask` is; no row of the same tokens."""
        rows = [row[real].tolist() for row, real in zip(ids.cpu(), mask.bool().cpu(), strict=True)]
        if self.pick == "random":
            return np.stack([random_rows(tokens, self.index.size, self.count) for tokens in rows])
        hashes = [hash_terms(np.array(tokens), np.arange(len(tokens))).sum(dtype=np.uint64) for tokens in rows]
        twins = [np.flatnonzero(self.token_hashes == one) for one in hashes]
        return np.stack(
            [self.index.nearest(tokens, self.count, but)[0] for tokens, but in zip(rows, twins, strict=True)]
        )

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
        found = zero_reference(len(ids), self.width) if self.pick == "zero" else self.read(self.find(ids, mask))
        keys, values, held = (tensor.to(ids.device) for tensor in found)
        return keys, values, held

    def copy_to(self, folder: Path) -> None:
        if folder.resolve() != self.folder.resolve():
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)


def zero_reference(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The reference that says nothing: one token whose key and value are zero."""
    return torch.zeros(rows, 1, width), torch.zeros(rows, 1, width), torch.ones(rows, 1, dtype=torch.bool)
