"""Which rows lie inside others, as the phrases of a sentence do: they must not part over training and held-out rows.

A text lies inside another if its words follow one another there. Runs of words are compared by 64-bit hashes: with h(w) a random
number for each word and P odd, the hash of words i to j is P^-i times the sum of h(w) P^t over them, a difference of prefix sums.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

LEAST_WORDS = 4  # a shorter run is common to texts that have nothing to do with each other
ANCHORS = (
    *range(1, 17),
    24,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
)  # so many first words of a text, the most it has, are looked up
MOST_PAIRS = 10_000_000  # of equal anchors, in memory at one time
FACTOR = 0x9E3779B97F4A7C15
Pairs = tuple[np.ndarray, np.ndarray]  # positions of texts, and of other texts that they lie inside


def group_by_containment(texts: Sequence[str], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """For each text the group that it must stay in, a position of one of its texts, and whether it is a fragment.

    Texts with the same name are in one group, and a text of four words or more is in one with all that it lies inside; a shorter
    one that lies inside another is a fragment.
    """
    first: dict[str, int] = {}
    parent = [first.setdefault(name, i) for i, name in enumerate(names)]
    runs, fragment = WordRuns(texts), np.zeros(len(texts), bool)
    for inner, outer in runs.containments():
        short = runs.lengths[inner] < LEAST_WORDS
        fragment[inner[short]] = True
        for one, other in set(zip(inner[~short].tolist(), outer[~short].tolist(), strict=True)):
            a, b = _root(parent, one), _root(parent, other)
            parent[max(a, b)] = min(a, b)
    return np.array([_root(parent, i) for i in range(len(texts))], np.int64), fragment


class WordRuns:
    """The hashes of all runs of words of some texts."""

    def __init__(self, texts: Sequence[str]):
        numbers: dict[str, int] = {}
        rows = [[numbers.setdefault(word, len(numbers)) for word in re.findall(r"\w+|\x1f", text)] for text in texts]
        self.offsets = np.cumsum([0, *map(len, rows)])
        self.lengths = np.diff(self.offsets)  # [N], words
        table = np.random.default_rng(0).integers(1, 1 << 63, len(numbers) + 1, np.uint64)
        words = table[np.fromiter((number for row in rows for number in row), np.int64, self.offsets[-1])]
        powers = np.cumprod(np.full(len(words) + 1, FACTOR, np.uint64))
        self.inverse = np.cumprod(np.full(len(words) + 1, pow(FACTOR, -1, 1 << 64), np.uint64))
        self.sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(words * powers[:-1])])
        self.row = np.repeat(np.arange(len(rows)), self.lengths)  # [words], the text of each word
        self.left = self.offsets[self.row + 1] - np.arange(len(words))  # [words], from each to its text's end

    def hashes(self, at: np.ndarray, count: np.ndarray | int) -> np.ndarray:
        """The hashes of the `count` words from each of the places `at` on."""
        return (self.sums[at + count] - self.sums[at]) * self.inverse[at]

    def containments(self) -> Iterator[Pairs]:
        """Pairs of texts, the first inside the second or equal to it; some occur more than once."""
        for low, high in pairwise((*ANCHORS, max(ANCHORS[-1], int(self.lengths.max(initial=0))) + 1)):
            yield from self._inside(low, high)

    def _inside(self, low: int, high: int) -> Iterator[Pairs]:
        """Those whose first has from `low` to less than `high` words: places of its first `low` words, then of all."""
        inner = np.flatnonzero((self.lengths >= low) & (self.lengths < high))
        if not len(inner):
            return
        wanted = self.hashes(self.offsets[inner], low)
        order = np.argsort(wanted, kind="stable")
        inner, wanted = inner[order], wanted[order]
        places = np.flatnonzero(self.left >= low)
        found = self.hashes(places, low)
        first, last = (np.searchsorted(wanted, found, side) for side in ("left", "right"))
        counts = last - first
        if counts.sum() > MOST_PAIRS and high > low + 1:  # many texts begin alike: one length at a time
            for length in range(low, high):
                yield from self._inside(length, length + 1)
            return
        at, one = np.repeat(places, counts), inner[np.repeat(first, counts) + _count_up(counts)]
        fits = (self.lengths[one] <= self.left[at]) & (one != self.row[at])
        at, one = at[fits], one[fits]
        same = self.hashes(at, self.lengths[one]) == self.hashes(self.offsets[one], self.lengths[one])
        yield one[same], self.row[at[same]]


def _count_up(counts: np.ndarray) -> np.ndarray:
    """0, 1, … for each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _root(parent: list[int], one: int) -> int:
    while parent[one] != one:
        parent[one] = parent[parent[one]]
        one = parent[one]
    return one
