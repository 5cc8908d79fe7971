"""Data augmentation (Jiao et al. 2020, TinyBERT, arXiv 1909.10351, algorithm 1): words of a row are replaced by similar words.

Candidates for a word of one token are the most probable words of a masked language model, whose input is the masked row and the
row itself as a pair; for a word of several tokens they are its nearest neighbours among word vectors. In each variant every such
word is replaced with a probability. As in the official code only words of letters are replaced, no stop words (here
scikit-learn's list), and each text of a pair is varied by itself. Ours: rows are processed in batches, and one masked copy of a
row has a mask every `spacing` such words, where the official code makes a copy for each; candidates are the most probable whole
words, where that code drops word pieces afterwards; a variant changes all texts of a pair; and a variant has no label, as the
teacher predicts it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from filbert.data.row_validation import low_bits, text_hash
from filbert.data.tasks import Source, Task
from filbert.runtime.config import Fraction, NonNegativeInt, PositiveInt
from filbert.text.masked_lm import MaskedCopy, MaskedLanguageModel
from filbert.text.transfer import Texts
from filbert.text.word_vectors import WordVectors
from filbert.training.loop import TrainingConfig

WORD = re.compile(r"(?<![\w'’])[^\W\d_]+(?!\w|['’]t\b)")  # of letters only, and not part of a contraction
ROWS = 64  # in one batch


@dataclass(frozen=True)
class AugmentConfig:
    """How many variants are made, and how."""

    variants: NonNegativeInt  # of each training row; 0: none are made
    max_rows: PositiveInt | None  # a task of more training rows is not augmented; null: any is
    beside_texts: bool  # whether a task that has transfer texts is augmented, too
    probability: Fraction  # of replacing a word, in each variant
    candidates: PositiveInt  # words that may replace a word
    spacing: (
        NonNegativeInt  # words from one mask of a copy to the next; 0: one mask a copy, as the official code has it
    )
    batch_size: PositiveInt  # masked copies in one forward pass
    masked_lm: Source | None  # null: the checkpoint, its head trained on the task's own text
    training: TrainingConfig | None  # of that head; null without a masked_lm: word vectors give all candidates

    def for_task(self, task: Task, rows: int) -> "AugmentConfig":
        """The same for a task of so many training rows: no variants of too many, none where other text stands in for them, and none
        where the teacher's probabilities are a part of the data."""
        unfit = self.max_rows is not None and rows > self.max_rows
        unfit |= bool(task.transfer) and not self.beside_texts
        return replace(self, variants=0) if unfit or task.teacher_columns else self


class Place(NamedTuple):
    """A word that may be replaced: its characters in the text, and candidates."""

    start: int
    end: int
    candidates: list[str]


def augment_rows(
    rows: Iterable[Texts], masked: MaskedLanguageModel | None, vectors: WordVectors, config: AugmentConfig, seed: int
) -> Iterator[Texts]:
    """Up to `config.variants` distinct variants of each row, as the rows come; they do not depend on other rows."""
    left = iter(rows)
    while part := list(islice(left, ROWS)):
        found = iter(replaceable_words([text for row in part for text in row], masked, vectors, config))
        for row in part:
            places = [next(found) for _ in row]
            made, generator = {row}, np.random.default_rng([seed, low_bits(text_hash(*row), 63)])
            for _ in range(config.variants):
                pairs = zip(row, places, strict=True)
                new = tuple(_vary(text, of_text, config.probability, generator) for text, of_text in pairs)
                if new not in made:
                    made.add(new)
                    yield new


def replaceable_words(
    texts: list[str], masked: MaskedLanguageModel | None, vectors: WordVectors, config: AugmentConfig
) -> list[list[Place]]:
    """The words of each text that may be replaced, with their candidates."""
    found: list[list[Place]] = [[] for _ in texts]
    copies: list[MaskedCopy] = []
    masked_spans: list[tuple[int, list[tuple[int, int]]]] = []  # text and spans of each copy
    for i, text in enumerate(texts):
        if masked and masked.tokenizer.mask_token in text:
            continue  # its own masks cannot be distinguished from ours
        spans = [word.span() for word in WORD.finditer(text) if word[0].lower() not in ENGLISH_STOP_WORDS]
        is_single = masked.is_single_token(text, spans) if masked else [False] * len(spans)
        predicted = [span for span, alone in zip(spans, is_single, strict=True) if alone]
        for start, end in set(spans) - set(predicted):
            found[i].append(Place(start, end, vectors.nearest(text[start:end].lower(), config.candidates)))
        step = config.spacing or len(predicted)
        for first in range(min(step, len(predicted))):
            chosen = predicted[first::step]
            masks = [Place(start, end, [masked.tokenizer.mask_token]) for start, end in chosen]  # type: ignore[union-attr]
            copies.append(
                MaskedCopy(_replaced(text, [(place, place.candidates[0]) for place in masks]), text, len(masks))
            )
            masked_spans.append((i, chosen))
    predictions = masked.predict_words(copies, config.candidates, config.batch_size) if masked else []
    for (i, chosen), prediction in zip(masked_spans, predictions, strict=True):
        for (start, end), words in zip(chosen, prediction, strict=True):
            found[i].append(Place(start, end, [word for word in words if word != texts[i][start:end].lower()]))
    return [sorted(place for place in each if place.candidates) for each in found]


def _vary(text: str, places: list[Place], probability: float, generator: np.random.Generator) -> str:
    chosen = [
        (place, place.candidates[generator.integers(len(place.candidates))])
        for place in places
        if generator.random() < probability
    ]
    return _replaced(text, chosen)


def _replaced(text: str, new: list[tuple[Place, str]]) -> str:
    for place, word in sorted(new, reverse=True):
        text = text[: place.start] + word + text[place.end :]
    return text
