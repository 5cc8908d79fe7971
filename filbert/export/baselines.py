"""What a user would take instead of a student: the larger class, TF-IDF or static embeddings with a linear model.

Static embeddings are those of model2vec (Minish, 2024): each token alone through the pretrained encoder, PCA, and a lower weight
for frequent tokens (SIF, Arora et al. 2017); a text is the mean of its tokens. Settings are chosen on validation rows.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from transformers import AutoModel

from filbert.data import arrow, batches
from filbert.data.tasks import Task, TaskKind
from filbert.evaluation import metrics
from filbert.evaluation.latency import LatencyConfig, time_texts
from filbert.runtime.config import Positive, PositiveInt

UNSEEN = -30.0  # the logit of a class that no training row has
FLOAT = 4  # bytes of a stored number
Rows = Sequence[tuple[str, ...]]  # the texts of each row
Features = Callable[[Rows], Any]  # [N, F], dense or sparse


@dataclass(frozen=True)
class BaselinesConfig:
    """What is tried on validation rows."""

    penalties: tuple[Positive, ...]  # inverse strength: scikit-learn's C
    ngrams: tuple[PositiveInt, ...]  # words of the longest, of TF-IDF
    min_rows: PositiveInt  # that a word must occur in
    dimensions: PositiveInt  # of static embeddings
    smoothing: Positive  # SIF's a: tokens more frequent than this weigh less than half


@dataclass(frozen=True)
class Split:
    """Rows as a baseline reads them."""

    texts: Rows
    label: np.ndarray  # [N] classes or numbers; of multilabel rows [N, C], 1 where a label applies

    @classmethod
    def of(cls, table: Any, task: Task) -> "Split":
        label, multilabel = table["label"], task.kind is TaskKind.MULTILABEL
        found = arrow.fixed_lists(label.combine_chunks()) if multilabel else label.to_numpy()
        return cls(arrow.texts_of(table, task), found)


@dataclass(frozen=True)
class Baseline:
    """Something that answers texts: logits [N, C], and what it takes to store it."""

    logits: Callable[[Rows], np.ndarray]
    parameters: int
    bytes: int
    settings: dict[str, Any]


def measure_baselines(
    task: Task, splits: dict[str, Split], checkpoint: Path, config: BaselinesConfig, timing: LatencyConfig
) -> dict[str, dict[str, Any]]:
    """By name each baseline's scores on the validation and test splits, size and milliseconds from text to answer; none of a task
    that tags words."""
    if task.kind is TaskKind.TAGGING:
        return {}
    made = {
        "majority": majority(task, splits["train"]),
        "tfidf": tfidf(task, splits, config),
        "static_embeddings": static_embeddings(task, splits, checkpoint, config),
    }
    times = time_texts({name: b.logits for name, b in made.items()}, splits["validation"].texts, timing)
    return {
        name: _figures(task, baseline, splits)
        | {"milliseconds": {f"batch_{size}": arms[name]["median"] for size, arms in times.items()}}
        for name, baseline in made.items()
    }


def _figures(task: Task, baseline: Baseline, splits: dict[str, Split]) -> dict[str, Any]:
    held_out = {name: split for name, split in splits.items() if name.startswith(("test", "validation"))}
    found = {name: metrics.scores(task, baseline.logits(split.texts), split.label) for name, split in held_out.items()}
    return {**found, "parameters": baseline.parameters, "bytes": baseline.bytes, "settings": baseline.settings}


def majority(task: Task, train: Split) -> Baseline:
    """The class that most training rows have; of a regression the mean; the labels that half of them have, or the commonest."""
    if task.kind is TaskKind.REGRESSION:
        row = np.array([train.label.mean()])
    elif task.kind is TaskKind.MULTILABEL:
        share = train.label.mean(0)
        row = np.where(share >= min(0.5, share.max()), 1.0, -1.0)
    else:
        row = np.bincount(train.label, minlength=task.outputs).astype(float)
    return Baseline(lambda texts: np.tile(row, (len(texts), 1)), len(row), FLOAT * len(row), {})


def tfidf(task: Task, splits: dict[str, Split], config: BaselinesConfig) -> Baseline:
    """Words and runs of words, weighted by rarity; texts of a pair are joined."""
    tried = []
    for longest in config.ngrams:
        vectorizer = TfidfVectorizer(
            ngram_range=(1, longest), min_df=config.min_rows, sublinear_tf=True, dtype=np.float32
        )
        vectorizer.fit([" ".join(texts) for texts in splits["train"].texts])

        def features(rows: Rows, vectorizer: TfidfVectorizer = vectorizer) -> Any:
            return vectorizer.transform([" ".join(texts) for texts in rows])

        words = len(json.dumps({word: int(at) for word, at in vectorizer.vocabulary_.items()}).encode())
        numbers = len(vectorizer.vocabulary_)
        tried += _fit(task, splits, features, config, {"ngrams": longest}, numbers, words + FLOAT * numbers)
    return max(tried, key=lambda pair: pair[0])[1]


def static_embeddings(task: Task, splits: dict[str, Split], checkpoint: Path, config: BaselinesConfig) -> Baseline:
    """The mean of a text's token embeddings; of a pair both means and their distance."""
    tokenizer = batches.load_tokenizer(checkpoint).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def ids(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    counts = np.bincount([i for texts in splits["train"].texts for row in ids(texts) for i in row])
    seen = np.flatnonzero(counts)
    table = _token_table(checkpoint, tokenizer, seen, config.dimensions)
    share = counts[seen] / counts.sum()
    table = (table * (config.smoothing / (config.smoothing + share))[:, None]).astype(np.float32)
    place = np.full(tokenizer.get_vocab_size() + 1, len(seen))
    place[seen] = np.arange(len(seen))
    table = np.vstack([table, np.zeros((1, table.shape[1]), np.float32)])  # the last row: a token not seen in training

    def mean(texts: Sequence[str]) -> np.ndarray:
        vectors = np.stack([table[place[row]].mean(0) if row else table[-1] for row in ids(texts)])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def features(rows: Rows) -> np.ndarray:
        columns = [mean(texts) for texts in zip(*rows, strict=True)]
        return np.hstack([*columns, np.abs(columns[0] - columns[1])]) if len(columns) > 1 else columns[0]

    names = len(json.dumps([tokenizer.id_to_token(int(token)) for token in seen]).encode())
    tried = _fit(task, splits, features, config, {"dimensions": table.shape[1]}, table.size, names + FLOAT * table.size)
    return max(tried, key=lambda pair: pair[0])[1]


def _token_table(checkpoint: Path, tokenizer: Any, tokens: np.ndarray, dimensions: int) -> np.ndarray:
    """The last state of each token alone between its special tokens, in the directions of largest variance: [tokens, D]."""
    model = AutoModel.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()
    around = tokenizer.encode("").ids  # what a tokenizer puts around an empty text
    first, last = around[:1], around[1:]
    rows = torch.tensor([[*first, int(token), *last] for token in tokens])
    with torch.inference_mode():
        states = torch.cat([model(input_ids=part).last_hidden_state[:, len(first)] for part in rows.split(512)]).numpy()
    states = states - states.mean(0)
    directions = np.linalg.svd(states.T @ states)[0][:, : min(dimensions, states.shape[1])]
    return states @ directions


def _fit(
    task: Task, splits: dict[str, Split], features: Features, config: BaselinesConfig, settings: dict[str, Any], numbers: int,
    stored: int,
) -> list[tuple[float, Baseline]]:  # fmt: skip
    """A linear model for each penalty, with its validation score."""
    train, out = features(splits["train"].texts), []
    for penalty in config.penalties:
        if task.kind is TaskKind.REGRESSION:
            model: Any = Ridge(alpha=1 / penalty).fit(train, splits["train"].label)
        elif task.kind is TaskKind.MULTILABEL:
            model = _EachLabel(penalty, train, splits["train"].label)
        else:
            model = LogisticRegression(C=penalty, max_iter=1000).fit(train, splits["train"].label)
        size = model.coef_.size + np.size(model.intercept_)
        logits = _reader(task, model, features)
        score = metrics.scores(task, logits(splits["validation"].texts), splits["validation"].label)["score"]
        found = Baseline(logits, numbers + size, stored + FLOAT * size, settings | {"penalty": penalty})
        out.append((score, found))
    return out


class _EachLabel:
    """A logistic regression for each label (one against the rest); a label that all or no training rows have stays so."""

    def __init__(self, penalty: float, train: Any, label: np.ndarray):
        models = [
            LogisticRegression(C=penalty, max_iter=1000).fit(train, column) if 0 < column.mean() < 1 else None
            for column in label.T
        ]
        self.coef_ = np.zeros((len(models), train.shape[1]))
        self.intercept_ = np.where(label.mean(0) == 1, -UNSEEN, UNSEEN)
        for number, model in enumerate(models):
            if model:
                self.coef_[number], self.intercept_[number] = model.coef_[0], model.intercept_[0]

    def decision_function(self, features: Any) -> np.ndarray:
        """The logits [N, C]."""
        return features @ self.coef_.T + self.intercept_


def _reader(task: Task, model: Any, features: Features) -> Callable[[Rows], np.ndarray]:
    """A fitted model as a function from texts to logits."""

    def logits(rows: Rows) -> np.ndarray:
        if task.kind is TaskKind.REGRESSION:
            return model.predict(features(rows)).reshape(-1, 1)
        if task.kind is TaskKind.MULTILABEL:
            return model.decision_function(features(rows))
        out = np.full((len(rows), task.outputs), UNSEEN)
        out[:, model.classes_] = np.log(np.maximum(model.predict_proba(features(rows)), np.exp(UNSEEN)))
        return out

    return logits
