"""BiLSTM students in training: what XtremeDistil's settings are put together from (methods/bilstm.py says which they are).

A student starts with an embedding of the tokens seen in training and transfer rows alone. It is taught in stages, each with a new
optimizer and its own schedule: in those that need no labels the best weights are told by the loss on a tenth of the rows that is
held out, in that of the labels by the validation score, where the official code for classification stops on the test set.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from filbert import FilbertError
from filbert.data.batches import Batch, TokenizedDataset, load_tokenizer
from filbert.data.tasks import TaskKind
from filbert.methods.context import MethodContext
from filbert.models import checkpoints
from filbert.models.bilstm import BiLstmConfig, BiLstmForSequenceClassification, BiLstmForTokenClassification
from filbert.models.checkpoints import forward_batch
from filbert.models.svd import low_rank_factors
from filbert.runtime.device import seed_everything
from filbert.text.word_vectors import WordVectors
from filbert.training import losses
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig

Loss = Callable[[Batch], Tensor]
HELD_OUT = 10  # one row in so many
PARTS = {"head": "classifier", "dense": "dense", "lstm": "lstm", "embedding": "embedding"}  # in the order of thawing


@dataclass(frozen=True)
class ShapeConfig:
    """The student's sizes; its dense layer is as wide as what the teacher's head reads."""

    embedding: int
    lstm: int  # units of one direction
    pooling: Literal["last", "max"]  # the paper's, or that of the first version's code, over time
    dropout: float
    start: Literal[
        "svd", "checkpoint", "vectors", "random"
    ]  # of the embedding: the strongest directions of the teacher's
    # table, or of that of the checkpoint that all start from, or of word vectors; or noise


@dataclass(frozen=True)
class StagesConfig:
    shape: ShapeConfig
    unfreeze: bool  # layer by layer from the top, a training for each; or all at once, as many steps
    follow: bool  # whether the representation is learnt; if not, its steps are the logits'
    representation: TrainingConfig
    logits: TrainingConfig
    labels: TrainingConfig | None  # none: no label is read


@dataclass(frozen=True)
class EpochsConfig:
    """Epochs of each stage; of logits and labels, of each part that is unfrozen."""

    representation: float
    logits: float
    labels: float


@dataclass(frozen=True)
class AllAtOnceConfig:
    """A control in one phase, as long as the stages are together; `fit.epochs` is times that long."""

    shape: ShapeConfig
    stages: EpochsConfig  # those of `bilstm`
    fit: TrainingConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """What the teacher must be asked."""
    return ("logits", "pooled")


def in_stages(study: MethodContext, config: StagesConfig) -> BiLstmForSequenceClassification:
    """Learn the teacher's representation, then its logits, then the labels (XtremeDistil, algorithm 1)."""
    student, texts = new_bilstm(study, config.shape), study.with_transfer()
    rows, held_out = texts.with_targets(["logits", "pooled"]), _held_out(len(texts.train))
    learnt, judged = rows.part(np.flatnonzero(~held_out)), rows.part(np.flatnonzero(held_out))
    times = 1.0 if config.unfreeze else len(PARTS)
    logits = replace(config.logits, epochs=config.logits.epochs * times)
    if config.follow:
        loss = learn_representation(student, study)
        study.fit_by_loss(student, loss, learnt, judged, config.representation, "representation")
    else:
        logits = replace(logits, epochs=logits.epochs + config.representation.epochs * times / len(PARTS))
    for part in unfrozen(student, config.unfreeze):
        study.fit_by_loss(student, learn_logits(student, study), learnt, judged, logits, f"logits-{part}")
    if config.labels:
        new_head(student, study.seed)
        labels = replace(config.labels, epochs=config.labels.epochs * times)
        for part in unfrozen(student, config.unfreeze):
            study.fit(student, study.label_loss(student), study.train, labels, f"labels-{part}")
    return student


def _held_out(rows: int) -> np.ndarray:
    return np.arange(rows) % HELD_OUT == 0


def as_long(study: MethodContext, rows: TokenizedDataset, config: AllAtOnceConfig) -> TrainingConfig:
    """One training on `rows` that takes as many steps as the stages do on this study's, batches of one size given."""
    texts, size = study.with_transfer().train, config.fit.batch_size
    learnt, labelled = (math.ceil(n / size) for n in (int((~_held_out(len(texts))).sum()), len(study.train)))
    of_logits, of_labels = (
        len(PARTS) * round(n * epochs)
        for n, epochs in ((learnt, config.stages.logits), (labelled, config.stages.labels))
    )
    steps = round(learnt * config.stages.representation) + of_logits + of_labels
    return replace(config.fit, epochs=config.fit.epochs * steps / math.ceil(len(rows) / size))


def new_bilstm(study: MethodContext, shape: ShapeConfig) -> BiLstmForSequenceClassification:
    """A fresh student whose embedding has the tokens seen in training and transfer rows; all others share the mean of those.

    Raises:
        FilbertError: the embedding is wider than the table whose directions it would start as.
    """
    seed_everything(study.seed)
    seen = torch.from_numpy(np.unique(study.with_transfer().train.ids).astype(np.int64))
    source = study.checkpoint if shape.start == "checkpoint" else study.teacher
    table = checkpoints.load_model(source).get_input_embeddings().weight.detach()  # type: ignore[operator]
    config = BiLstmConfig(
        vocab_size=len(table),
        kept_tokens=len(seen) + 1,
        embedding_size=shape.embedding,
        lstm_size=shape.lstm,
        hidden_size=study.width("pooled"),
        pooling=shape.pooling,
        dropout=shape.dropout,
        **checkpoints.label_fields(study.task),
    )
    tags = study.task.kind is TaskKind.TAGGING
    student = (BiLstmForTokenClassification if tags else BiLstmForSequenceClassification)(config)
    student.rows[seen] = torch.arange(1, len(seen) + 1, dtype=torch.int32)
    if shape.start != "random":
        known = _of_vectors(study, seen) if shape.start == "vectors" else table[seen].float()
        strongest = low_rank_factors(known, shape.embedding)[0]
        with torch.no_grad():
            student.embedding.weight.copy_(torch.cat([strongest.mean(0, keepdim=True), strongest]))
    return student


def _of_vectors(study: MethodContext, seen: Tensor) -> Tensor:
    """The word vectors of tokens that are words, and of others their mean."""
    if study.vectors is None:
        raise FilbertError("shape.start: this stage has no word vectors; take svd or random")
    vectors = WordVectors(study.vectors, most=400_000)
    tokens = load_tokenizer(study.teacher).convert_ids_to_tokens(seen.tolist())
    at = [vectors.at.get(token.lstrip("▁Ġ").lower(), -1) for token in tokens]
    table = torch.from_numpy(np.concatenate([vectors.table, vectors.table.mean(0, keepdims=True)]))
    return table[at]


def unfrozen(student: BiLstmForSequenceClassification, step_by_step: bool) -> Iterator[str]:
    """Thaw the student from the top, one part more each time, and name the part; or all of it at once."""
    parts = {name: student.get_submodule(module) for name, module in PARTS.items()}
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


def learn_representation(student: BiLstmForSequenceClassification, study: MethodContext) -> Loss:
    """Squared error to what the teacher's head reads."""
    return lambda batch: _representation(study, forward_batch(student, batch), batch)


def learn_logits(student: BiLstmForSequenceClassification, study: MethodContext) -> Loss:
    """Half the squared error of the logits (section 3.3: no temperature)."""
    return lambda batch: _logits(study, forward_batch(student, batch), batch)


def _representation(study: MethodContext, answer: Any, batch: Batch) -> Tensor:
    ours, theirs = (
        study.drop_padding(answer.hidden_states[0], batch),
        study.drop_padding(batch.targets["pooled"], batch),
    )
    return F.mse_loss(ours.float(), theirs.float())


def _logits(study: MethodContext, answer: Any, batch: Batch) -> Tensor:
    return (
        F.mse_loss(study.drop_padding(answer.logits, batch).float(), study.drop_padding(batch.targets["logits"], batch))
        / 2
    )


def learn_jointly(student: BiLstmForSequenceClassification, study: MethodContext, weights: WeightsConfig) -> Loss:
    """All three losses at once, weighted; the labels' over the rows that have one (section 3.3, the joint variant)."""

    def loss(batch: Batch) -> Tensor:
        answer = forward_batch(student, batch)
        representation, logits = _representation(study, answer, batch), _logits(study, answer, batch)
        hard = study.hard_loss(answer.logits, batch)
        return weights.labels * hard + weights.logits * logits + weights.representation * representation

    return loss


def learn_hard(student: BiLstmForSequenceClassification, study: MethodContext) -> Loss:
    """The labels, and of rows without one the teacher's answer in its place, of words their first token's (arXiv 1910.01769; our
    reconstruction)."""

    def loss(batch: Batch) -> Tensor:
        said = batch.targets["logits"]
        answer = said.argmax(-1) if study.task.labels else said[:, 0]
        open_to = ~losses.has_label(batch.label) if batch.word is None else (batch.label < 0) & (batch.word >= 0)
        label = torch.where(open_to, answer.to(batch.label.dtype), batch.label)
        return losses.task_loss(study.task.kind, forward_batch(student, batch).logits, label)

    return loss
