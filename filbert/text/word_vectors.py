"""Word vectors, frequent words first, such as GloVe (Pennington, Socher, Manning 2014, EMNLP)."""

from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from filbert import FilbertError

FILES = ("*.txt", "*.npy", "*.parquet")


class WordVectors:
    """A table of word vectors, and the nearest neighbours of a word by cosine similarity."""

    def __init__(self, folder: Path, max_words: int = 100_000):
        """Read the `max_words` first words of a folder's table: a .txt with a word and its vector a line, as GloVe is
        published, or an .npy of vectors and a .parquet of their words. TinyBERT uses 100,000 words.

        Raises:
            FilbertError: there is no table, or a line has no word or not as many numbers as the first.
        """
        texts, rows, words = (sorted(folder.glob(pattern)) for pattern in FILES)
        if texts:
            self.words, self.table = _read_text(texts[0], max_words)
        elif rows and words:
            self.words = pq.read_table(words[0]).column(0).slice(0, max_words).to_pylist()
            self.table = np.array(np.load(rows[0], mmap_mode="r", allow_pickle=False)[:max_words])
        else:
            raise FilbertError(f"{folder}: expected word vectors, a .txt, or an .npy and a .parquet; found neither")
        if len(self.words) != len(self.table):
            raise FilbertError(f"{folder}: {len(self.words)} words, but {len(self.table)} vectors")
        self.index = {word: i for i, word in enumerate(self.words)}
        self.unit = self.table / np.linalg.norm(self.table, axis=1, keepdims=True).clip(1e-12)
        self._neighbours: dict[str, list[str]] = {}

    def nearest(self, word: str, count: int) -> list[str]:
        """The nearest other words; empty for a word that is not in the table."""
        if word in self.index and len(self._neighbours.get(word, ())) < count:
            similarity = self.unit @ self.unit[self.index[word]]
            best = np.argpartition(-similarity, min(count, len(similarity) - 1))[: count + 1]
            ordered = best[np.argsort(-similarity[best], kind="stable")]
            self._neighbours[word] = [self.words[i] for i in ordered if i != self.index[word]]
        return self._neighbours.get(word, [])[:count]


def _read_text(file: Path, max_words: int) -> tuple[list[str], np.ndarray]:
    words: list[str] = []
    rows: list[np.ndarray] = []
    width = 0
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, max_words), 1):
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
            words.append(" ".join(fields[:-width]))  # a word may contain spaces
    if not rows:
        raise FilbertError(f"{file}: expected a word and its numbers in each line, got an empty file")
    return words, np.stack(rows)
