"""The transfer set: text without labels that a student may learn its teacher's answers on.

Texts of any source are kept if they are of a fit length, occur once, are no training row, and tell nothing of the rows that are
held out: none equals a validation or test row after normalisation, none shares more than a part of its shingles (runs of words)
with all of those together, and none has more than a part of the shingles of one of them. Memory holds one hash per kept text and
per held-out shingle, never the texts.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import xxhash

from filbert.data.arrow import Row
from filbert.data.readers import low_bits, normalize_text, text_hash
from filbert.data.tasks import Task, TaskKind

ENDS = re.compile(r"(?<=[.!?])[\"')\]]*\s+|<br\s*/?>|\n+")  # where a sentence ends
WORD = re.compile(r"\w+")
Texts = tuple[str, ...]  # of one row


@dataclass(frozen=True)
class FilterConfig:
    """Which texts are kept."""

    min_words: int
    max_words: int
    shingle: int  # words of a shingle
    overlap: float  # share of a text's shingles that may occur in held-out rows
    quoted: float  # share of a held-out row's shingles that may occur in a text
    max_rows: int  # rows of one source: a text, or the task's own rows without labels


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of a text, by their marks and line breaks."""
    return (part.strip() for part in ENDS.split(text) if part and part.strip())


def normalized_words(texts: Texts) -> list[str]:
    """The words rows are compared by: lower case, no marks, so that `it's` and `it 's` are the same."""
    return WORD.findall(normalize_text(" ".join(texts)))


class HeldOutRows:
    """What validation and test rows say, as hashes."""

    def __init__(self, rows: Iterable[Texts], shingle: int, symmetric: bool = False):
        """Take in the rows; of a symmetric task a pair is held out both ways."""
        self.shingle = shingle
        self.whole: set[int] = set()
        self.rows_of: dict[int, list[int]] = {}  # by shingle, numbers of rows
        self.sizes: list[int] = []  # shingles of each row
        for texts in rows:
            for words in map(normalized_words, {texts, texts[::-1]} if symmetric else {texts}):
                self.whole.add(_hash(words))
                own = self.shingles(words)
                for part in own:
                    self.rows_of.setdefault(part, []).append(len(self.sizes))
                self.sizes.append(len(own))

    def shingles(self, words: list[str]) -> set[int]:
        """Hashes of all runs of `shingle` words; of a shorter text, of the whole."""
        return {_hash(words[i : i + self.shingle]) for i in range(max(1, len(words) - self.shingle + 1))}

    def leaks(self, words: list[str], config: FilterConfig) -> bool:
        """Whether a text is a held-out row, is made of held-out rows for a good part, or quotes a good part of one."""
        if _hash(words) in self.whole:
            return True
        own = self.shingles(words)
        shared = [part for part in own if part in self.rows_of]
        if len(shared) > config.overlap * len(own):
            return True
        quoted = Counter(row for part in shared for row in self.rows_of[part])
        return any(count > config.quoted * self.sizes[row] for row, count in quoted.items())


class TransferFilter:
    """The rows that may be learnt from, each once; `counts` says how many, and why others are not among them."""

    def __init__(self, training: Iterable[Texts], held_out: HeldOutRows, config: FilterConfig):
        self.held_out, self.config = held_out, config
        self.seen = {_hash(normalized_words(texts)) for texts in training}
        self.counts: Counter[str] = Counter()

    def of(self, name: str, rows: Iterable[Texts]) -> Iterator[Texts]:
        """What is kept of the rows called `name`, of any length, all of them, as they come."""
        for texts in rows:
            if self._admit(normalized_words(texts)):
                self.counts[f"kept {name}"] += 1
                yield texts

    def sample(self, name: str, read: Callable[[], Iterable[Texts]], any_length: bool = False) -> Iterator[Texts]:
        """What is kept of texts called `name`, of fit length, up to `config.max_rows` of them, drawn by a hash of their words; they
        are read twice."""
        admitted = [found for texts in read() if (found := self._admit(normalized_words(texts), not any_length))]
        drawn = set(sorted(admitted)[: self.config.max_rows])
        self.counts["not drawn"] += len(admitted) - len(drawn)
        self.counts[f"kept {name}"] += len(drawn)
        for texts in read():
            if (found := _hash(normalized_words(texts))) in drawn:
                drawn.remove(found)
                yield texts

    def _admit(self, words: list[str], limited: bool = False) -> int:
        """The hash of a text that is kept, 0 of another."""
        found = _hash(words)
        if limited and not self.config.min_words <= len(words) <= self.config.max_words:
            self.counts["of another length"] += 1
        elif found in self.seen:
            self.counts["seen before"] += 1
        elif self.held_out.leaks(words, self.config):
            self.counts["held out"] += 1
        else:
            self.seen.add(found)
            return found
        return 0


def to_rows(kept: Iterable[Texts], task: Task) -> Iterator[Row]:
    """Rows of the task, numbered by their text, so that those that stay when others come keep their words in the cache; with the
    label of a row that has none."""
    none = {TaskKind.REGRESSION: float("nan"), TaskKind.TAGGING: ()}.get(task.kind, -1)
    for texts in kept:
        found = text_hash(*texts)
        row = dict(zip(task.columns, texts, strict=True))
        yield {"idx": low_bits(found, 31), **row, "label": none, "hash": found}


def row_texts(table: pa.Table, task: Task) -> Iterator[Texts]:
    """The texts of each row of a prepared table, some rows in memory at a time."""
    for batch in table.select(list(task.columns)).to_batches(max_chunksize=4096):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _hash(words: list[str]) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(words).encode())
