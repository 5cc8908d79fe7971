"""GLUE's metrics, by scikit-learn and scipy, the F1 of labels and of named entities. All are fractions; higher is better."""

import warnings
from collections.abc import Callable

import numpy as np

from filbert.data.batches import TokenizedDataset
from filbert.data.tasks import Task, TaskKind

# scikit-learn and scipy are imported where they are used: every stage imports this module, and they take a second


def _accuracy(label: np.ndarray, prediction: np.ndarray) -> float:
    return float((label == prediction).mean())


def _f1(label: np.ndarray, prediction: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return f1_score(label, prediction, zero_division=0.0)


def _f1_of_labels(average: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """The F1 over all pairs of a row and a label (micro), or its mean over labels (macro), of 0 and 1 [N, C]."""

    def f1(label: np.ndarray, prediction: np.ndarray) -> float:
        from sklearn.metrics import f1_score

        return f1_score(label.astype(int), prediction.astype(int), average=average, zero_division=0.0)

    return f1


def _matthews(label: np.ndarray, prediction: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return matthews_corrcoef(label, prediction)


def _correlation(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlation(label: np.ndarray, prediction: np.ndarray) -> float:
        from scipy import stats

        with warnings.catch_warnings(category=stats.ConstantInputWarning, action="ignore"):
            value = float(getattr(stats, name)(label, prediction)[0])
        return 0.0 if np.isnan(value) else value  # of a constant prediction, whose correlation is undefined

    return correlation


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_micro": _f1_of_labels("micro"),
    "f1_macro": _f1_of_labels("macro"),
    "matthews": _matthews,
    "pearson": _correlation("pearsonr"),
    "spearman": _correlation("spearmanr"),
}


def predictions(task: Task, logits: np.ndarray) -> np.ndarray:
    """Classes [N], numbers [N] for a regression, or for multilabel rows 1 where a label's probability is above a half [N, C], from
    logits [N, C]; in tagging N counts tokens."""
    if task.kind is TaskKind.MULTILABEL:
        return (logits > 0).astype(int)
    return logits[:, 0] if task.kind is TaskKind.REGRESSION else logits.argmax(-1)


def scores(task: Task, logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """The task's metrics by name, and their mean as `score` (as GLUE does where a task has two)."""
    predicted = predictions(task, logits)
    values = {name: float(METRICS[name](label, predicted)) for name in task.metrics}
    return {"score": float(np.mean(list(values.values()))), **values}


def scores_on(task: Task, logits: np.ndarray, rows: TokenizedDataset) -> dict[str, float]:
    """The task's scores of logits [N, C] on rows; in tagging, of logits [tokens, C], the F1 of entities."""
    if task.kind is not TaskKind.TAGGING:
        return scores(task, logits, rows.label)
    f1 = entity_f1(task, predictions(task, by_word(logits, rows)), rows)
    return {"score": f1, "entity_f1": f1}


def by_word(logits: np.ndarray, rows: TokenizedDataset) -> np.ndarray:
    """The logits [words, C] of words from those of tokens [tokens, C], each of the word's first token; zeros, so that the tag is 0,
    no entity, for a word beyond the maximum length."""
    assert rows.word is not None
    assert rows.tags is not None
    row = np.repeat(np.arange(len(rows)), rows.lengths)
    word = rows.tags[:-1][row] + rows.word
    begins = (rows.word >= 0) & (word < rows.tags[1:][row])
    out = np.zeros((len(rows.label), logits.shape[1]), logits.dtype)
    out[word[begins]] = logits[begins]
    return out


def entity_f1(task: Task, predicted: np.ndarray, rows: TokenizedDataset) -> float:
    """The F1 of entities, correct where type and both ends are, as CoNLL-2003's evaluation and seqeval count: an I- tag that
    continues no entity of its type begins one."""
    assert rows.tags is not None
    found, correct = (entities(task, tags, rows.tags) for tags in (predicted, rows.label))
    return 2 * len(found & correct) / max(1, len(found) + len(correct))


def entities(task: Task, tags: np.ndarray, offsets: np.ndarray) -> set[tuple[int, int, str]]:
    """First word, word after the last, and type of every entity; `tags` [words] of all rows, row i at offsets[i]:offsets[i + 1]."""
    out, starts = set(), set(offsets.tolist())
    begin, kind = 0, ""
    for at, name in enumerate([task.labels[tag] for tag in tags.tolist()] + ["O"]):
        prefix, _, name_kind = name.partition("-")
        if kind and (prefix != "I" or name_kind != kind or at in starts):
            out.add((begin, at, kind))
            kind = ""
        if name_kind and not kind:
            begin, kind = at, name_kind
    return out
