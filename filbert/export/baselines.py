"""What a user would take instead of a student: the larger class, TF-IDF or static embeddings with a linear model.

Static embeddings are those of model2vec (Minish, 2024): each token alone through the pretrained encoder, PCA, and a lower weight
for frequent tokens (SIF, Arora et al. 2017); a text is the mean of its tokens. Settings are chosen on validation rows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from tokenizers import Tokenizer
from transformers import AutoModel

from filbert.data import arrow, batches
from filbert.data.tasks import Task, TaskKind
from filbert.evaluation import metrics
from filbert.runtime.config import Positive, PositiveInt

UNSEEN = -1e4  # the logit of a class that no training row has
FLOAT = 4  # bytes of a stored number
ABOUT = "about"
Rows = Sequence[tuple[str, ...]]  # the texts of each row
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class BaselinesConfig:
    """What is tried on validation rows."""

    inverse_regularization: tuple[Positive, ...]  # scikit-learn's C
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


class Features(Protocol):
    """What a linear model reads of rows of texts, and how that is stored: as arrays and a text."""

    def __call__(self, rows: Rows, /) -> Any:
        """[N, F], dense or sparse."""
        ...

    def stored(self) -> tuple[Arrays, str]: ...


class NoFeatures:
    """Nothing: all rows get the same answer."""

    def __call__(self, rows: Rows) -> np.ndarray:
        return np.zeros((len(rows), 0), np.float32)

    def stored(self) -> tuple[Arrays, str]:
        return {}, ""

    @classmethod
    def of(cls, arrays: Arrays, text: str) -> "NoFeatures":
        return cls()


@dataclass(frozen=True)
class TfidfFeatures:
    """Words and runs of words, weighted by rarity; texts of a pair are joined."""

    vectorizer: TfidfVectorizer

    def __call__(self, rows: Rows) -> Any:
        return self.vectorizer.transform([" ".join(texts) for texts in rows])

    def stored(self) -> tuple[Arrays, str]:
        fitted, terms = self.vectorizer, self.vectorizer.get_feature_names_out().tolist()
        return {"idf": fitted.idf_}, json.dumps([fitted.analyzer, fitted.ngram_range[1], terms])

    @classmethod
    def of(cls, arrays: Arrays, text: str) -> "TfidfFeatures":
        analyzer, longest, terms = json.loads(text)
        vectorizer = _vectorizer(analyzer, longest, vocabulary=terms)
        vectorizer.idf_ = arrays["idf"]
        return cls(vectorizer)


@dataclass(frozen=True)
class StaticEmbeddings:
    """The mean of a text's token embeddings; of a pair both means and their distance."""

    tokenizer: Tokenizer
    table: np.ndarray  # [tokens seen in training + 1, D] float32; the last row serves all others
    place: np.ndarray  # [tokens] row of each

    def __call__(self, rows: Rows) -> np.ndarray:
        columns = [self._mean(texts) for texts in zip(*rows, strict=True)]
        return np.hstack([*columns, np.abs(columns[0] - columns[1])]) if len(columns) > 1 else columns[0]

    def _mean(self, texts: Sequence[str]) -> np.ndarray:
        rows = _token_ids(self.tokenizer, texts)
        vectors = np.stack([self.table[self.place[row]].mean(0) if row else self.table[-1] for row in rows])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def stored(self) -> tuple[Arrays, str]:
        return {"table": self.table, "place": self.place}, self.tokenizer.to_str()

    @classmethod
    def of(cls, arrays: Arrays, text: str) -> "StaticEmbeddings":
        return cls(Tokenizer.from_str(text), arrays["table"], arrays["place"])


FEATURES: dict[str, Any] = {"majority": NoFeatures, "tfidf": TfidfFeatures, "static_embeddings": StaticEmbeddings}


@dataclass(frozen=True)
class Baseline:
    """A linear model of features of a text, and what it takes to store it."""

    features: Features
    weight: np.ndarray  # [F, C] float32, in C order: sparse rows are multiplied without a copy of it
    bias: np.ndarray  # [C] float32
    parameters: int
    bytes: int
    settings: dict[str, Any]

    def logits(self, rows: Rows) -> np.ndarray:
        """The logits [N, C] of rows of texts."""
        return self.logits_of(self.features(rows))

    def logits_of(self, features: Any) -> np.ndarray:
        """The logits [N, C] of features [N, F]."""
        return features @ self.weight + self.bias


def fit_baselines(
    task: Task, splits: dict[str, Split], checkpoint: Path, config: BaselinesConfig
) -> dict[str, Baseline]:
    """Each baseline, by name, fitted on the training rows; none of a task that tags words."""
    if task.kind is TaskKind.TAGGING:
        return {}
    return {
        "majority": majority(task, splits["train"]),
        "tfidf": tfidf(task, splits, config),
        "static_embeddings": static_embeddings(task, splits, checkpoint, config),
    }


def measure(task: Task, baseline: Baseline, splits: dict[str, Split]) -> dict[str, Any]:
    """The scores of a baseline on the validation and test splits, its size and its settings."""
    held_out = {name: split for name, split in splits.items() if name.startswith(("test", "validation"))}
    found = {name: metrics.scores(task, baseline.logits(split.texts), split.label) for name, split in held_out.items()}
    return {**found, "parameters": baseline.parameters, "bytes": baseline.bytes, "settings": baseline.settings}


def save(baselines: dict[str, Baseline], folder: Path) -> None:
    """Write each baseline as NAME.safetensors; its text and size are one key of the metadata, for several are in no order."""
    for name, baseline in baselines.items():
        arrays, text = baseline.features.stored()
        size = {"parameters": baseline.parameters, "bytes": baseline.bytes, "settings": baseline.settings}
        save_file(
            arrays | {"weight": baseline.weight, "bias": baseline.bias}, folder / f"{name}.safetensors",
            {ABOUT: json.dumps([text, size])},
        )  # fmt: skip


def load(folder: Path) -> dict[str, Baseline]:
    """The baselines that `save` wrote, by name."""
    found = {}
    for name, kind in FEATURES.items():
        if (file := folder / f"{name}.safetensors").exists():
            with safe_open(file, "numpy") as opened:
                arrays = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
                text, size = json.loads(opened.metadata()[ABOUT])
            found[name] = Baseline(kind.of(arrays, text), arrays["weight"], arrays["bias"], **size)
    return found


def majority(task: Task, train: Split) -> Baseline:
    """The class that most training rows have; of a regression the mean; the labels that half of them have, or the commonest."""
    if task.kind is TaskKind.REGRESSION:
        row = np.array([train.label.mean()])
    elif task.kind is TaskKind.MULTILABEL:
        share = train.label.mean(0)
        row = np.where(share >= min(0.5, share.max()), 1.0, -1.0)
    else:
        row = np.bincount(train.label, minlength=task.outputs).astype(float)
    return Baseline(
        NoFeatures(), np.zeros((0, len(row)), np.float32), row.astype(np.float32), len(row), FLOAT * len(row), {}
    )


def tfidf(task: Task, splits: dict[str, Split], config: BaselinesConfig) -> Baseline:
    """TF-IDF of words and runs of words, with a linear model; of characters where no word is in `min_rows` rows, as in Chinese."""
    tried, texts = [], [" ".join(texts) for texts in splits["train"].texts]
    for longest in config.ngrams:
        vectorizer = _vectorizer("word", longest, min_df=config.min_rows)
        try:
            vectorizer.fit(texts)
        except ValueError:  # no word is left
            vectorizer = _vectorizer("char_wb", longest).fit(texts)
        numbers, places = len(vectorizer.vocabulary_), {word: int(at) for word, at in vectorizer.vocabulary_.items()}
        stored = FLOAT * numbers + len(json.dumps(places).encode())
        tried += _fit(task, splits, TfidfFeatures(vectorizer), config, {"ngrams": longest}, numbers, stored)
    return max(tried, key=lambda pair: pair[0])[1]


def _vectorizer(analyzer: str, longest: int, **more: Any) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer=analyzer, ngram_range=(1, longest), sublinear_tf=True, dtype=np.float32, **more)


def static_embeddings(task: Task, splits: dict[str, Split], checkpoint: Path, config: BaselinesConfig) -> Baseline:
    """Static embeddings of the tokens seen in training, with a linear model."""
    tokenizer = batches.load_tokenizer(checkpoint).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    counts = np.bincount([i for texts in splits["train"].texts for row in _token_ids(tokenizer, texts) for i in row])
    seen = np.flatnonzero(counts)
    table = _token_table(checkpoint, tokenizer, seen, config.dimensions)
    share = counts[seen] / counts.sum()
    table = (table * (config.smoothing / (config.smoothing + share))[:, None]).astype(np.float32)
    place = np.full(tokenizer.get_vocab_size() + 1, len(seen))
    place[seen] = np.arange(len(seen))
    table = np.vstack([table, np.zeros((1, table.shape[1]), np.float32)])
    features, names = StaticEmbeddings(tokenizer, table, place), [tokenizer.id_to_token(int(token)) for token in seen]
    size = len(json.dumps(names).encode()) + FLOAT * table.size
    tried = _fit(task, splits, features, config, {"dimensions": table.shape[1]}, table.size, size)
    return max(tried, key=lambda pair: pair[0])[1]


def _token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


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
    """A linear model for each strength, with its validation score; `numbers` and bytes `stored` are the features' own."""
    held_out, out = splits["validation"], []
    train, validation = features(splits["train"].texts), features(held_out.texts)
    for strength in config.inverse_regularization:
        weight, bias, size = _fit_linear(task, train, splits["train"].label, strength)
        found = Baseline(
            features, np.ascontiguousarray(weight.T, np.float32), bias.astype(np.float32), numbers + size, stored + FLOAT * size,
            settings | {"inverse_regularization": strength},
        )  # fmt: skip
        out.append((metrics.scores(task, found.logits_of(validation), held_out.label)["score"], found))
    return out


def _fit_linear(task: Task, train: Any, label: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights [C, F] and biases [C] of a linear model, and how many numbers it takes to store them."""
    if task.kind is TaskKind.REGRESSION:
        ridge = Ridge(alpha=1 / strength).fit(train, label)
        return ridge.coef_[None], np.array([ridge.intercept_]), ridge.coef_.size + 1
    weight, bias = np.zeros((task.outputs, train.shape[1])), np.full(task.outputs, UNSEEN)
    if task.kind is TaskKind.MULTILABEL:  # one against the rest; a label that all or no training rows have stays so
        for number, column in enumerate(label.T):
            if 0 < column.mean() < 1:
                model = LogisticRegression(C=strength, max_iter=1000).fit(train, column)
                weight[number], bias[number] = model.coef_[0], model.intercept_[0]
            elif column.mean() == 1:
                bias[number] = -UNSEEN
        return weight, bias, weight.size + bias.size
    model = LogisticRegression(C=strength, max_iter=1000).fit(train, label)
    rows = model.classes_[-len(model.coef_) :]  # of two classes the second alone has weights
    bias[model.classes_], weight[rows], bias[rows] = 0, model.coef_, model.intercept_
    return weight, bias, model.coef_.size + model.intercept_.size
