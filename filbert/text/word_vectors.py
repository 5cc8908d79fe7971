"""Word vectors: words and their numbers, frequent words first, as GloVe has them (Pennington, Socher, Manning 2014)."""

from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from filbert import FilbertError

FILES = ("*.txt", "*.npy", "*.parquet")


class WordVectors:
    """A table of word vectors, and the nearest words of a word by cosine."""

    def __init__(self, folder: Path, most: int = 100_000):
        """Read the `most` frequent words of a folder's table: a .txt of a word and its numbers a line, as GloVe itself is
        published, or an .npy of rows and a .parquet of their words. A cut of 100,000 words is TinyBERT's.

        Raises:
            FilbertError: there is no table, or a line does not have a word and as many numbers as the first.
        """
        texts, rows, words = (sorted(folder.glob(pattern)) for pattern in FILES)
        if texts:
            self.words, self.table = _read_text(texts[0], most)
        elif rows and words:
            self.words = pq.read_table(words[0]).column(0).slice(0, most).to_pylist()
            self.table = np.array(np.load(rows[0], mmap_mode="r", allow_pickle=False)[:most])
        else:
            raise FilbertError(f"{folder}: expected word vectors, a .txt, or an .npy and a .parquet; found neither")
        if len(self.words) != len(self.table):
            raise FilbertError(f"{folder}: {len(self.words)} words, but {len(self.table)} vectors")
        self.at = {word: i for i, word in enumerate(self.words)}
        self.unit = self.table / np.linalg.norm(self.table, axis=1, keepdims=True).clip(1e-12)
        self._known: dict[str, list[str]] = {}

    def nearest(self, word: str, count: int) -> list[str]:
        """The nearest other words; none of a word that is not in the table."""
        if word in self.at and len(self._known.get(word, ())) < count:
            likeness = self.unit @ self.unit[self.at[word]]
            best = np.argpartition(-likeness, min(count, len(likeness) - 1))[: count + 1]
            ordered = best[np.argsort(-likeness[best], kind="stable")]
            self._known[word] = [self.words[i] for i in ordered if i != self.at[word]]
        return self._known.get(word, [])[:count]


def _read_text(file: Path, most: int) -> tuple[list[str], np.ndarray]:
    words: list[str] = []
    rows: list[np.ndarray] = []
    width = 0
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, most), 1):
            fields = line.rstrip("\n").split(" ")
            width = width or len(fields) - 1
            if not 0 < width < len(fields):
                raise FilbertError(
                    f"{file}, line {number}: expected a word and {width or 'some'} numbers, got {line.strip()!r}"
                )
            try:
                rows.append(np.array(fields[-width:], np.float32))
            except ValueError as error:
                raise FilbertError(f"{file}, line {number}: expected a word and numbers, got {error}") from error
            words.append(" ".join(fields[:-width]))  # which may have spaces in it
    if not rows:
        raise FilbertError(f"{file}: expected a word and its numbers in each line, got an empty file")
    return words, np.stack(rows)
