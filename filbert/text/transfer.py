"""The transfer set: text without labels on which a student learns its teacher's predictions.

Texts of any source are kept if their length is in range, they occur once, equal no training row, and leak no held-out
(validation or test) row: none equals one after normalisation, none shares more than a part of its shingles (runs of words) with
all of them together, and none contains more than a part of the shingles of one. Memory holds one hash per kept text and per
held-out shingle, not the texts.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import xxhash

from filbert.data.arrow import Row
from filbert.data.row_validation import low_bits, normalize_text, text_hash
from filbert.data.tasks import Task, TaskKind
from filbert.runtime.config import Fraction, NonNegativeInt, PositiveInt

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|<br\s*/?>|\n+")
WORD = re.compile(r"\w+")
BATCH = 4096  # rows of a table in memory at a time
Texts = tuple[str, ...]  # of one row


@dataclass(frozen=True)
class FilterConfig:
    """Which texts are kept."""

    min_words: NonNegativeInt
    max_words: PositiveInt
    shingle: PositiveInt  # words of a shingle
    overlap: Fraction  # share of a text's shingles that may occur in held-out rows
    quoted: Fraction  # share of a held-out row's shingles that may occur in a text
    max_rows: PositiveInt  # rows of one source: a text, or the task's own rows without labels


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of a text, split at punctuation and line breaks."""
    return (part.strip() for part in SENTENCE_END.split(text) if part and part.strip())


def normalized_words(texts: Texts) -> list[str]:
    """The words by which rows are compared: lower case, without punctuation, so that `it's` and `it 's` are the same."""
    return WORD.findall(normalize_text(" ".join(texts)))


class HeldOutRows:
    """Validation and test rows as hashes of their words, and by their shingles."""

    def __init__(self, rows: Iterable[Texts], shingle: int, symmetric: bool = False):
        """Index the rows; of a symmetric task a pair is held out in both orders."""
        self.shingle = shingle
        self.row_hashes: set[int] = set()
        self.rows_with: dict[tuple[str, ...], list[int]] = {}  # row numbers by shingle
        self.shingle_counts: list[int] = []  # of each row
        for texts in rows:
            for words in map(normalized_words, {texts, texts[::-1]} if symmetric else {texts}):
                self.row_hashes.add(_hash(words))
                shingles = self.shingles(words)
                for one in shingles:
                    self.rows_with.setdefault(one, []).append(len(self.shingle_counts))
                self.shingle_counts.append(len(shingles))

    def shingles(self, words: list[str]) -> set[tuple[str, ...]]:
        """All runs of `shingle` words; of a shorter text, the whole."""
        length = min(self.shingle, len(words))
        return set(zip(*(words[start:] for start in range(length)), strict=False)) or {()}

    def leaks(self, words: list[str], config: FilterConfig) -> bool:
        """Whether a text equals a held-out row, shares too many shingles with all of them, or contains too many of one."""
        if _hash(words) in self.row_hashes:
            return True
        shingles = self.shingles(words)
        shared = [one for one in shingles if one in self.rows_with]
        if len(shared) > config.overlap * len(shingles):
            return True
        quoted = Counter(row for one in shared for row in self.rows_with[one])
        return any(count > config.quoted * self.shingle_counts[row] for row, count in quoted.items())


class TransferFilter:
    """Keeps texts that may be learnt from, each once. `counts` holds how many by source, and of the others by reason."""

    def __init__(self, training: Iterable[Texts], held_out: HeldOutRows, config: FilterConfig):
        self.held_out, self.config = held_out, config
        self.seen = {_hash(normalized_words(texts)) for texts in training}
        self.counts: Counter[str] = Counter()

    def filter_all(self, source: str, rows: Iterable[Texts]) -> Iterator[Texts]:
        """The rows of `source` that are kept, of any length and number, in their order."""
        for texts in rows:
            if self._admit(normalized_words(texts)):
                self.counts[source] += 1
                yield texts

    def sample(self, source: str, read: Callable[[], Iterable[Texts]], any_length: bool = False) -> Iterator[Texts]:
        """Up to `config.max_rows` texts of `source`, of those that are kept, drawn by a hash of their words. `read` is called
        twice, so that the texts need not fit in memory."""
        admitted = [
            (found, place)
            for place, texts in enumerate(read())
            if (found := self._admit(normalized_words(texts), not any_length))
        ]
        drawn = {place for _, place in sorted(admitted)[: self.config.max_rows]}
        self.counts["over_max_rows"] += len(admitted) - len(drawn)
        self.counts[source] += len(drawn)
        yield from (texts for place, texts in enumerate(read()) if place in drawn)

    def _admit(self, words: list[str], check_length: bool = False) -> int:
        """The hash of a text that is kept, 0 of another."""
        found = _hash(words)
        if check_length and not self.config.min_words <= len(words) <= self.config.max_words:
            self.counts["length"] += 1
        elif found in self.seen:
            self.counts["duplicate"] += 1
        elif self.held_out.leaks(words, self.config):
            self.counts["leaking"] += 1
        else:
            self.seen.add(found)
            return found
        return 0


def to_rows(texts: Iterable[Texts], task: Task) -> Iterator[Row]:
    """Rows of the task with its label for "none". `idx` is a hash of the text: a row keeps its cached targets when others join."""
    no_label = {TaskKind.MULTILABEL: None, TaskKind.REGRESSION: float("nan"), TaskKind.TAGGING: ()}.get(task.kind, -1)
    for row in texts:
        found = text_hash(*row)
        yield {
            "idx": low_bits(found, 31),
            **dict(zip(task.columns, row, strict=True)),
            "label": no_label,
            "hash": found,
        }


def row_texts(table: pa.Table, task: Task) -> Iterator[Texts]:
    """The texts of each row of a prepared table, read some rows at a time."""
    for batch in table.select(list(task.columns)).to_batches(max_chunksize=BATCH):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _hash(words: list[str]) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(words).encode())
