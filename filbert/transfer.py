"""The transfer set: text without labels that a student may learn its teacher's answers on.

Sentences of any text are kept if they are of a fit length, occur once, and tell nothing of the rows that are held out: no text
equals a validation or test row after normalisation, and none shares more than a part of its shingles (runs of words) with
all of those together. Memory holds one hash per kept text and per held-out shingle, never the texts.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import xxhash

from filbert.tables import normalised

ENDS = re.compile(r"(?<=[.!?])[\"')\]]*\s+|<br\s*/?>|\n+")  # where a sentence ends
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class TextConfig:
    """Which texts are kept."""

    least_words: int
    most_words: int
    shingle: int  # words of a shingle
    overlap: float  # share of a text's shingles that may occur in held-out rows
    most: int  # texts


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, by their marks and line breaks."""
    return (part.strip() for part in ENDS.split(text) if part and part.strip())


def words_of(text: str) -> list[str]:
    """The words two texts are compared by: lower case, no marks, so that `it's` and `it 's` are the same."""
    return WORD.findall(normalised(text))


class HeldOut:
    """What validation and test rows say, as hashes."""

    def __init__(self, texts: Iterable[str], shingle: int):
        self.shingle = shingle
        self.whole: set[int] = set()
        self.parts: set[int] = set()
        for text in texts:
            words = words_of(text)
            self.whole.add(_hash(words))
            self.parts.update(self.shingles(words))

    def shingles(self, words: list[str]) -> set[int]:
        """Hashes of all runs of `shingle` words; of a shorter text, of the whole."""
        return {_hash(words[i : i + self.shingle]) for i in range(max(1, len(words) - self.shingle + 1))}

    def overlap(self, words: list[str]) -> float:
        """The share of a text's shingles that some held-out row has; 1 for a text that is one."""
        if _hash(words) in self.whole:
            return 1.0
        own = self.shingles(words)
        return len(own & self.parts) / len(own)


def kept(texts: Iterable[str], held_out: HeldOut, config: TextConfig, counts: Counter[str]) -> Iterator[str]:
    """The texts that may be learnt from, each once, up to `config.most`; `counts` says why others are not among them."""
    seen: set[int] = set()
    for text in texts:
        words = words_of(text)
        if not config.least_words <= len(words) <= config.most_words:
            counts["of another length"] += 1
        elif (found := _hash(words)) in seen:
            counts["duplicate"] += 1
        elif held_out.overlap(words) > config.overlap:
            counts["held out"] += 1
        else:
            seen.add(found)
            counts["kept"] += 1
            yield text
            if len(seen) == config.most:
                return


def _hash(words: list[str]) -> int:
    return xxhash.xxh3_64_intdigest(" ".join(words).encode())
