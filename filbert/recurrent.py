"""BiLSTM students in training: what XtremeDistil's settings are put together from (methods/bilstm.py says which they are).

A student starts with an embedding of the pieces seen in training and transfer rows alone. It is taught in stages, each with a new
optimizer and its own schedule: in those that need no labels the best weights are told by the loss on a tenth of the rows that is
held out, in that of the labels by the validation score, where the official code for classification stops on the test set.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filbert import FilbertError, losses, students
from filbert.bilstm import BiLstmConfig, BiLstmForSequenceClassification, BiLstmForTokenClassification
from filbert.data import Batch, load_tokenizer
from filbert.device import seed_everything
from filbert.layerwise import Depth
from filbert.students import ask
from filbert.study import Study
from filbert.tasks import Kind
from filbert.train import FitConfig
from filbert.vectors import Vectors

Loss = Callable[[Batch], Tensor]
HELD_OUT = 10  # one row in so many


@dataclass(frozen=True)
class ShapeConfig:
    """The student's sizes; its dense layer is as wide as what the teacher's head reads."""

    embedding: int
    lstm: int  # units of one direction
    pooling: Literal["last", "max"]  # the paper's, or that of the first version's code, over time
    dropout: float
    start: Literal["svd", "vectors", "random"]  # of the embedding: the teacher's table, word vectors, or noise


@dataclass(frozen=True)
class StagesConfig:
    shape: ShapeConfig
    unfreeze: bool  # layer by layer from the top, a training for each; or all at once
    representation: FitConfig | None  # a stage that is left out is none
    logits: FitConfig
    labels: FitConfig | None


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked."""
    return ("logits", "pooled")


def in_stages(study: Study, config: StagesConfig) -> BiLstmForSequenceClassification:
    """Learn the teacher's representation, then its logits, then the labels (XtremeDistil, algorithm 1)."""
    student, texts = new_bilstm(study, config.shape), study.with_transfer()
    rows, held_out = texts.taught(["logits", "pooled"]), np.arange(len(texts.train)) % HELD_OUT == 0
    learnt, judged = rows.part(np.flatnonzero(~held_out)), rows.part(np.flatnonzero(held_out))
    if config.representation:
        study.fit_by_loss(
            student, learn_representation(student, study), learnt, judged, config.representation, "representation"
        )
    for part in unfrozen(student, config.unfreeze):
        study.fit_by_loss(student, learn_logits(student, study), learnt, judged, config.logits, f"logits-{part}")
    if config.labels:
        new_head(student, study.seed)
        for part in unfrozen(student, config.unfreeze):
            study.fit(student, study.learn_labels(student), study.train, config.labels, f"labels-{part}")
    return student


def new_bilstm(study: Study, shape: ShapeConfig) -> BiLstmForSequenceClassification:
    """A fresh student whose embedding has the pieces seen in training and transfer rows; all others share the mean of those.

    Raises:
        FilbertError: the embedding is wider than the table whose directions it would start as.
    """
    seed_everything(study.seed)
    seen = torch.from_numpy(np.unique(study.with_transfer().train.ids).astype(np.int64))
    table = students.load(study.teacher).get_input_embeddings().weight.detach()  # type: ignore[operator]
    config = BiLstmConfig(
        vocab_size=len(table),
        kept_pieces=len(seen) + 1,
        embedding_size=shape.embedding,
        lstm_size=shape.lstm,
        hidden_size=study.width("pooled"),
        pooling=shape.pooling,
        dropout=shape.dropout,
        **students.labels(study.task),
    )
    tags = study.task.kind is Kind.TAGGING
    student = (BiLstmForTokenClassification if tags else BiLstmForSequenceClassification)(config)
    student.rows[seen] = torch.arange(1, len(seen) + 1, dtype=torch.int32)
    if shape.start != "random":
        known = table[seen].float() if shape.start == "svd" else _of_vectors(study, seen)
        if shape.embedding > known.shape[1]:
            raise FilbertError(
                f"shape.embedding: expected at most {known.shape[1]}, what it starts as; got {shape.embedding}"
            )
        u, s, _ = torch.linalg.svd(known, full_matrices=False)
        strongest = (u * s)[:, : shape.embedding]
        with torch.no_grad():
            student.embedding.weight.copy_(torch.cat([strongest.mean(0, keepdim=True), strongest]))
    return student


def _of_vectors(study: Study, seen: Tensor) -> Tensor:
    """The word vectors of pieces that are words, and of others their mean."""
    if study.vectors is None:
        raise FilbertError("shape.start: this stage has no word vectors; take svd or random")
    vectors = Vectors(study.vectors, most=400_000)
    pieces = load_tokenizer(study.teacher).convert_ids_to_tokens(seen.tolist())
    at = [vectors.at.get(piece.lstrip("▁Ġ").lower(), -1) for piece in pieces]
    table = torch.from_numpy(np.concatenate([vectors.table, vectors.table.mean(0, keepdims=True)]))
    return table[at]


def unfrozen(student: BiLstmForSequenceClassification, step_by_step: bool) -> Iterator[str]:
    """Thaw the student from the top, one part more each time, and name the part; or all of it at once."""
    parts: dict[str, nn.Module] = {
        "head": student.classifier, "dense": student.dense, "lstm": student.lstm, "embedding": student.embedding
    }  # fmt: skip
    student.requires_grad_(not step_by_step)
    for name, part in parts.items() if step_by_step else [("all", student)]:
        part.requires_grad_(True)
        yield name


@dataclass(frozen=True)
class WeightsConfig:
    """Of the three losses of the joint variant."""

    labels: float
    logits: float
    representation: float


def new_head(student: BiLstmForSequenceClassification, seed: int) -> None:
    """Forget the head, as stage 3 of the official code does."""
    seed_everything(seed)
    student.classifier.reset_parameters()


def learn_representation(student: BiLstmForSequenceClassification, study: Study) -> Loss:
    """Squared error to what the teacher's head reads."""
    return lambda batch: _representation(study, ask(student, batch), batch)


def learn_logits(student: BiLstmForSequenceClassification, study: Study) -> Loss:
    """Half the squared error of the logits (section 3.3: no temperature)."""
    return lambda batch: _logits(study, ask(student, batch), batch)


def _representation(study: Study, answer: Any, batch: Batch) -> Tensor:
    ours, theirs = study.real(answer.hidden_states[0], batch), study.real(batch.teacher["pooled"], batch)
    return F.mse_loss(ours.float(), theirs.float())


def _logits(study: Study, answer: Any, batch: Batch) -> Tensor:
    return F.mse_loss(study.real(answer.logits, batch).float(), study.real(batch.teacher["logits"], batch)) / 2


def learn_jointly(student: BiLstmForSequenceClassification, study: Study, weights: WeightsConfig) -> Loss:
    """All three losses at once, weighted; the labels' over the rows that have one (section 3.3, the joint variant)."""

    def loss(batch: Batch) -> Tensor:
        answer = ask(student, batch)
        representation, logits = _representation(study, answer, batch), _logits(study, answer, batch)
        hard = study.hard_loss(answer.logits, batch)
        return weights.labels * hard + weights.logits * logits + weights.representation * representation

    return loss


def learn_hard(student: BiLstmForSequenceClassification, study: Study) -> Loss:
    """The labels, and of rows without one the teacher's answer in its place (arXiv 1910.01769; our reconstruction)."""

    def loss(batch: Batch) -> Tensor:
        said = study.real(batch.teacher["logits"], batch)
        answer, label = said.argmax(-1) if study.task.labels else said[:, 0], study.real(batch.label, batch)
        label = torch.where(losses.known(label), label, answer.to(label.dtype))
        return losses.HARD[study.task.kind](study.real(ask(student, batch).logits, batch), label)

    return loss
