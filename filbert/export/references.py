"""What a student that reads references looks up before it answers: BM25 over the store beside its weights, with numpy alone.

The same references to the last bit as models/reference_store.py finds with torch and bm25s (a test). This file stands alone: it
travels with a release.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

FOLDER = "references"


class References:
    """The store in a folder, its large arrays mapped: token ids of rows in, their references' keys, values and mask out."""

    def __init__(self, folder: Path):
        """Open the store.

        Raises:
            FileNotFoundError: a file of it is missing.
        """
        settings = json.loads((folder / "store.json").read_text())
        self.kind, self.count, self.width = settings["kind"], settings["count"], settings["width"]
        if self.kind == "zero":
            return
        self.data, self.indices, self.indptr = (
            np.load(folder / "index" / f"{part}.csc.index.npy") for part in ("data", "indices", "indptr")
        )
        self.offsets, self.token_hashes = np.load(folder / "offsets.npy"), np.load(folder / "token_hashes.npy")
        self.size = len(self.offsets) - 1
        self.arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("keys", "values")]
        scaled = self.arrays[0].dtype == np.int8
        self.scales = [np.load(folder / f"{name}.scale.npy", mmap_mode="r") for name in ("keys", "values") if scaled]

    def __call__(self, rows: list[list[int]]) -> dict[str, np.ndarray]:
        """The inputs reference_keys, reference_values [B, R, D] float32 and reference_mask [B, R] int64."""
        if self.kind == "zero":
            empty = np.zeros((len(rows), 1, self.width), np.float32)
            return _inputs(empty, empty, np.ones((len(rows), 1), np.int64))
        found = np.stack([self._random(row) if self.kind == "random" else self._nearest(row) for row in rows])
        starts, lengths = self.offsets[found], self.offsets[found + 1] - self.offsets[found]
        column = np.arange(lengths.max())
        held = column < lengths[..., None]  # [B, count, longest]
        at = np.where(held, starts[..., None] + column, 0)
        keys, values = (self._vectors(number, at) for number in range(2))
        return _inputs(keys, values, held.reshape(len(rows), -1).astype(np.int64))

    def _nearest(self, tokens: list[int]) -> np.ndarray:
        """The rows with the highest scores, ties by number; rows with the same tokens last."""
        scores = np.zeros(self.size, np.float32)
        for token in tokens:
            if token < len(self.indptr) - 1:
                posting = slice(self.indptr[token], self.indptr[token + 1])
                scores[self.indices[posting]] += self.data[posting]
        digest = hashlib.blake2b(np.asarray(tokens, "<u4").tobytes(), digest_size=8).digest()
        scores[self.token_hashes == np.uint64(int.from_bytes(digest, "little"))] = -np.inf
        count = min(self.count, self.size)
        rows = np.flatnonzero(scores >= -np.partition(-scores, count - 1)[count - 1])
        return rows[np.lexsort((rows, -scores[rows]))][:count]

    def _random(self, tokens: list[int]) -> np.ndarray:
        return np.random.default_rng(tokens).integers(self.size, size=self.count)

    def _vectors(self, number: int, at: np.ndarray) -> np.ndarray:
        vectors = self.arrays[number][at].astype(np.float32)
        if self.scales:
            vectors *= self.scales[number][at][..., None]
        return vectors.reshape(len(at), -1, self.width)


def _inputs(keys: np.ndarray, values: np.ndarray, held: np.ndarray) -> dict[str, np.ndarray]:
    return {"reference_keys": keys, "reference_values": values, "reference_mask": held}
