"""Scores of resampled test rows and seeds: the Multi-Bootstrap (Sellam et al. 2022, arXiv 2106.16163).

Rows and seeds are drawn with replacement, both at once, the same rows for all students of a task: differences are paired by row
and by seed. Ours are two corrections for few seeds, in `resample_seeds`.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from filbert.data.tasks import Task, TaskKind
from filbert.evaluation import metrics
from filbert.evaluation.predictions import Predictions, read_predictions

DRAWS = 5000
SEED = 0
COUNTS_AT_A_TIME = 2_000_000  # counts of rows in memory at one time

Scorer = Callable[[np.ndarray], np.ndarray]  # from how often each row was drawn [B, N] float64 to scores [B], fractions


def resample_rows(task: Task, files: Sequence[Path]) -> np.ndarray:
    """The scores [S, 1 + DRAWS], in points, of what `files`, one a seed, say of test rows: of the rows as they are, then of rows
    drawn with replacement, the same for any files; the mean over the test sets where a task has several."""
    seeds, sets = [read_predictions(file, task) for file in files], []
    for split in seeds[0]:
        scorers, rows = [scorer(task, of_seed[split]) for of_seed in seeds], len(seeds[0][split])
        drawn = row_counts(rows, zlib.crc32(f"{task.name}/{split}".encode()))
        sets.append(np.concatenate([[score(counts) for score in scorers] for counts in drawn], axis=1))
    return 100 * np.mean(sets, axis=0)


def row_counts(rows: int, key: int) -> Iterator[np.ndarray]:
    """How often each row is drawn [B, rows] float64: once, then as DRAWS bootstrap samples have it, some samples at a time."""
    yield np.ones((1, rows))
    generator, at_a_time = np.random.default_rng((SEED, key)), max(1, COUNTS_AT_A_TIME // rows)
    for start in range(0, DRAWS, at_a_time):
        samples = min(at_a_time, DRAWS - start)
        drawn = generator.integers(rows, size=(samples, rows)) + rows * np.arange(samples)[:, None]
        yield np.bincount(drawn.ravel(), minlength=samples * rows).reshape(samples, rows).astype(np.float64)


def resample_seeds(scores: np.ndarray, key: str = "") -> np.ndarray:
    """The mean [DRAWS] over seeds, drawn with replacement, of scores [S, 1 + DRAWS] as `resample_rows` gives them, or of their
    differences or ratios. Of one seed those of its rows alone. Tasks with another `key` draw other seeds.

    A bootstrap of S seeds has (S - 1) / S of their variance, and the tails of a normal distribution: with three seeds that would be
    sure too often. So deviations are enlarged (Rao and Wu 1988), and spread as Student's t with the degrees of freedom of
    Welch and Satterthwaite, which are many where rows vary more than seeds and S - 1 where seeds vary alone.
    """
    whole, by_row = scores[:, 0], scores[:, 1:]
    seeds, draws = by_row.shape
    if seeds == 1:
        return by_row[0]
    generator = np.random.default_rng((SEED, zlib.crc32(key.encode())))
    weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), draws).T / seeds
    means = ((1 / seeds + (weights - 1 / seeds) * (seeds / (seeds - 1)) ** 0.5) * by_row).sum(0)
    of_seeds = whole.var(ddof=1) / seeds
    if of_seeds == 0:
        return means
    freedom = (seeds - 1) * max(1, means.var() / of_seeds) ** 2
    return whole.mean() + (means - whole.mean()) * (freedom / generator.chisquare(freedom, draws)) ** 0.5


def scorer(task: Task, rows: Predictions) -> Scorer:
    """The task's score (metrics.scores) of resampled rows."""
    predicted = metrics.predictions(task, rows.logits)
    if task.kind is TaskKind.TAGGING:
        return _entity_f1(task, predicted, rows)
    parts = [SCORERS[name](rows.label, predicted) for name in task.metrics]
    return lambda counts: np.mean([part(counts) for part in parts], axis=0)


def _accuracy(label: np.ndarray, predicted: np.ndarray) -> Scorer:
    correct = (label == predicted) / len(label)
    return lambda counts: counts @ correct


def _f1(label: np.ndarray, predicted: np.ndarray) -> Scorer:
    correct, named = (1.0 * label * predicted, 1.0 * label + predicted)  # classes are 0 and 1
    return lambda counts: 2 * (counts @ correct) / np.maximum(1, counts @ named)


def _f1_micro(label: np.ndarray, predicted: np.ndarray) -> Scorer:
    """Over all pairs of a row and a label, of labels and predictions [N, C]."""
    correct, named = (label * predicted).sum(1, dtype=np.float64), (label + predicted).sum(1, dtype=np.float64)
    return lambda counts: 2 * (counts @ correct) / np.maximum(1, counts @ named)


def _f1_macro(label: np.ndarray, predicted: np.ndarray) -> Scorer:
    """The mean over labels, 0 for one that no row drawn has or is given."""
    correct, named = 1.0 * label * predicted, 1.0 * label + predicted
    return lambda counts: (2 * (counts @ correct) / np.maximum(1, counts @ named)).mean(1)


def _matthews(label: np.ndarray, predicted: np.ndarray) -> Scorer:
    """Gorodkin's R_K, which for two classes is Matthews' coefficient: a correlation of one-hot vectors."""
    classes = np.union1d(label, predicted)
    x, y = (np.equal.outer(values, classes).astype(np.float64) for values in (label, predicted))
    return lambda counts: _correlation(len(label), counts @ x, counts @ y, counts @ (x * x).sum(1),
                                       counts @ (y * y).sum(1), counts @ (x * y).sum(1))  # fmt: skip


def _pearson(label: np.ndarray, predicted: np.ndarray) -> Scorer:
    x, y = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (label, predicted))
    return lambda counts: _correlation(len(x), (counts @ x)[:, None], (counts @ y)[:, None], counts @ x**2, counts @ y**2,
                                       counts @ (x * y))  # fmt: skip


def _spearman(label: np.ndarray, predicted: np.ndarray) -> Scorer:
    """Pearson's correlation of ranks among the rows drawn."""
    rank_x, rank_y, middle = _ranks(label), _ranks(predicted), (len(label) + 1) / 2

    def score(counts: np.ndarray) -> np.ndarray:
        x, y = rank_x(counts) - middle, rank_y(counts) - middle
        zero = np.zeros((len(counts), 1))
        return _correlation(
            len(label), zero, zero, *(np.einsum("bn,bn,bn->b", counts, *pair) for pair in ((x, x), (y, y), (x, y)))
        )

    return score


def _ranks(values: np.ndarray) -> Scorer:
    """From counts [B, N] the ranks [B, N] of the rows drawn; those of equal values are their mean."""
    order = np.argsort(values, kind="stable")
    distinct, group = np.unique(values, return_inverse=True)
    starts = np.searchsorted(values[order], distinct)

    def ranks(counts: np.ndarray) -> np.ndarray:
        equal = np.add.reduceat(counts[:, order], starts, axis=1)
        return (equal.cumsum(1) - (equal - 1) / 2)[:, group]

    return ranks


def _correlation(n: int, x: np.ndarray, y: np.ndarray, xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """The correlation [B] of vectors from their sums x, y [B, K] and sums of products [B] over n rows; 0 where one is constant."""
    variances = (xx * n - (x * x).sum(1)) * (yy * n - (y * y).sum(1))
    constant = variances <= 1e-12 * (xx * yy) * n**2
    return np.where(constant, 0, (xy * n - (x * y).sum(1)) / np.sqrt(np.where(constant, 1, variances)))


def _entity_f1(task: Task, predicted: np.ndarray, rows: Predictions) -> Scorer:
    """metrics.entity_f1 of resampled sentences, from the entities that each has and the correct ones among them."""
    found, true = (metrics.entities(task, tags, rows.offsets) for tags in (predicted, rows.label))
    correct, named = (_by_sentence(entities, rows.offsets) for entities in (found & true, [*found, *true]))
    return lambda counts: 2 * (counts @ correct) / np.maximum(1, counts @ named)


def _by_sentence(entities: set[tuple[int, int, str]] | list[tuple[int, int, str]], offsets: np.ndarray) -> np.ndarray:
    """How many entities each sentence has, [N] float64."""
    first = np.array([begin for begin, _, _ in entities], np.int64)
    sentence = np.searchsorted(offsets, first, side="right") - 1
    return np.bincount(sentence, minlength=len(offsets) - 1).astype(np.float64)


SCORERS: dict[str, Callable[[np.ndarray, np.ndarray], Scorer]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_micro": _f1_micro,
    "f1_macro": _f1_macro,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
