"""Data augmentation (Jiao et al. 2020, TinyBERT, arXiv 1909.10351, algorithm 1): words of a row replaced by words that fit.

A word that is one token gets the likeliest words of a masked language model in its place, the row itself standing beside the
masked one; a word of several tokens gets its nearest neighbours among word vectors. In each variant every such word is
replaced with a probability. As in the official code only words of letters are, no stop words (here scikit-learn's list), and
each text of a pair is varied by itself. Ours: rows are asked about many at a time, and one masked copy of a row has a mask every
`spacing` such words, where the official code makes a copy for each; candidates are the likeliest whole words, where that code
drops tokens afterwards; all texts of a pair vary in a variant; and a variant has no label: its teacher tells.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from filbert.data.readers import low_bits, text_hash
from filbert.data.tasks import Source
from filbert.text.masked_lm import MaskedCopy, MaskedLanguageModel
from filbert.text.transfer import Texts
from filbert.text.word_vectors import WordVectors
from filbert.training.loop import TrainingConfig

WORD = re.compile(r"(?<![\w'’])[^\W\d_]+(?!\w|['’]t\b)")  # of letters alone, and no part of a contraction
ROWS = 64  # varied together


@dataclass(frozen=True)
class AugmentConfig:
    variants: int  # of each training row; 0: none are made
    probability: float  # of replacing a word, in each variant
    candidates: int  # words that may stand for a word
    spacing: int  # words from one mask of a copy to the next; 0: one mask a copy, as the official code has it
    batch_size: int  # masked copies in one forward pass
    masked_lm: Source | None  # none: the checkpoint, its head trained on the task's own text
    training: TrainingConfig | None  # of that training; if there is neither, word vectors alone say what fits


class Place(NamedTuple):
    """A word that may be replaced."""

    start: int
    end: int
    by: list[str]


def augment_rows(
    rows: Iterable[Texts], masked: MaskedLanguageModel | None, vectors: WordVectors, config: AugmentConfig, seed: int
) -> Iterator[Texts]:
    """Up to `config.variants` new variants of each row, as the rows come; a row's do not depend on the others."""
    left = iter(rows)
    while part := list(islice(left, ROWS)):
        found = iter(replaceable_words([text for row in part for text in row], masked, vectors, config))
        for row in part:
            open_to = [next(found) for _ in row]
            made, draw = {row}, np.random.default_rng([seed, low_bits(text_hash(*row), 63)])
            for _ in range(config.variants):
                pairs = zip(row, open_to, strict=True)
                new = tuple(_vary(text, places, config.probability, draw) for text, places in pairs)
                if new not in made:
                    made.add(new)
                    yield new


def replaceable_words(
    texts: list[str], masked: MaskedLanguageModel | None, vectors: WordVectors, config: AugmentConfig
) -> list[list[Place]]:
    """The words of each text that may be replaced, and by which."""
    found: list[list[Place]] = [[] for _ in texts]
    copies: list[MaskedCopy] = []
    asked: list[tuple[int, list[tuple[int, int]]]] = []
    for i, text in enumerate(texts):
        if masked and masked.tokenizer.mask_token in text:
            continue  # its own masks could not be told from ours
        spans = [word.span() for word in WORD.finditer(text) if word[0].lower() not in ENGLISH_STOP_WORDS]
        single = masked.is_single_token(text, spans) if masked else [False] * len(spans)
        guessed = [span for span, alone in zip(spans, single, strict=True) if alone]
        for start, end in set(spans) - set(guessed):
            found[i].append(Place(start, end, vectors.nearest(text[start:end].lower(), config.candidates)))
        step = config.spacing or len(guessed)
        for first in range(min(step, len(guessed))):
            chosen = guessed[first::step]
            masks = [Place(start, end, [masked.tokenizer.mask_token]) for start, end in chosen]  # type: ignore[union-attr]
            copies.append(MaskedCopy(_replaced(text, [(place, place.by[0]) for place in masks]), text, len(masks)))
            asked.append((i, chosen))
    answers = masked.predict_words(copies, config.candidates, config.batch_size) if masked else []
    for (i, chosen), answer in zip(asked, answers, strict=True):
        for (start, end), words in zip(chosen, answer, strict=True):
            found[i].append(Place(start, end, [word for word in words if word != texts[i][start:end].lower()]))
    return [sorted(place for place in each if place.by) for each in found]


def _vary(text: str, open_to: list[Place], probability: float, draw: np.random.Generator) -> str:
    return _replaced(
        text, [(place, place.by[draw.integers(len(place.by))]) for place in open_to if draw.random() < probability]
    )


def _replaced(text: str, new: list[tuple[Place, str]]) -> str:
    for place, word in sorted(new, reverse=True):
        text = text[: place.start] + word + text[place.end :]
    return text
