"""XtremeDistil (Mukherjee, Awadallah 2020, ACL, arXiv 2004.05686) and 1910.01769: a BiLSTM distilled in stages from much text.

Algorithm 1 and the official code, on training and transfer rows: stage 1 learns the teacher's representation, end to end; stage
2 its logits by squared error, the head alone, then the dense layer, the BiLSTM and the embedding, too; stage 3 the labels with
a new head, unfrozen alike. Each phase has a new optimiser and its own schedule. The representation is what the teacher's head
reads (the paper takes a middle layer's for tagging). The embedding holds the tokens seen in training and transfer rows alone and
starts as an SVD of the teacher's table.

Ours: the mean squared error in stage 1 (the first version's KLD clips raw vectors to [0, 1]; later versions took the squared
error, too). Phases without labels keep the weights of the lowest loss on a tenth of the rows, the label stage those of the best
validation score, where the official code for classification stops on the test set. Controls: `objective: joint` (the paper's
D2), `hard` (1910.01769, our reconstruction), `labels`; `unfreeze: false` (D4.1); `learn_representation: false`. They take as
many steps as the stages do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from filbert import FilbertError
from filbert.data.batches import Batch, load_tokenizer
from filbert.data.tasks import Task, TaskKind
from filbert.methods.context import Loss, MethodContext
from filbert.models import checkpoints
from filbert.models.bilstm import BiLstmConfig, BiLstmForSequenceClassification, BiLstmForTokenClassification
from filbert.models.checkpoints import forward_batch
from filbert.models.loading import load_config
from filbert.models.svd import low_rank_factors
from filbert.runtime.config import NonNegative, PositiveInt, Range
from filbert.runtime.device import seed_everything
from filbert.text.word_vectors import WordVectors
from filbert.training import losses
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig, of_steps, total_steps

HELD_OUT = 10  # one row in so many chooses the best weights of a phase without labels
PARTS = {"head": "classifier", "dense": "dense", "lstm": "lstm", "embedding": "embedding"}  # in the order of unfreezing


@dataclass(frozen=True)
class ShapeConfig:
    """The student's sizes; its dense layer is as wide as what the teacher's head reads."""

    embedding: PositiveInt
    lstm: PositiveInt  # units of one direction
    pooling: Literal[
        "last", "max"
    ]  # the last states (the paper's), or the maximum over time (the first version's code)
    dropout: Annotated[float, Range(0, 0.95)]
    embedding_init: Literal[
        "svd", "checkpoint", "word_vectors", "random"
    ]  # SVD of the teacher's table, of the checkpoint's, …
    pairs: Literal["siamese", "joint"]  # two texts, each read alone by the same BiLSTM; or one stream of tokens
    activation: Literal["gelu", "tanh", "identity"]  # of the dense layer (the paper's: gelu)


@dataclass(frozen=True)
class WeightsConfig:
    """Of the three losses of the joint objective."""

    labels: NonNegative
    logits: NonNegative
    representation: NonNegative


@dataclass(frozen=True)
class Config:
    shape: ShapeConfig
    objective: Literal["stages", "joint", "hard", "labels"]
    unfreeze: bool  # layer by layer from the top, a phase for each; or all at once, as many steps
    learn_representation: bool  # if not, its steps are the logits'
    transfer: bool
    representation: TrainingConfig
    logits: TrainingConfig  # of each part that is unfrozen
    labels: TrainingConfig | None  # likewise; none: no label is read
    weights: WeightsConfig


def columns(layer_map: LayerMap, config: Config) -> tuple[str, ...]:
    """The teacher's logits and, where it is learnt, what its head reads."""
    represented = config.objective == "joint" or (config.objective == "stages" and config.learn_representation)
    return () if config.objective == "labels" else ("logits", "pooled") if represented else ("logits",)


def compress(context: MethodContext, config: Config) -> BiLstmForSequenceClassification:
    """Train a fresh BiLSTM by the objective."""
    student, texts = new_bilstm(context, config.shape), context.with_transfer()
    if config.objective == "stages":
        return _in_stages(context, texts, student, config)
    rows = (
        context.train if config.objective == "labels" else texts.with_targets(list(columns(context.layer_map, config)))
    )
    loss = {"labels": context.label_loss(student), "hard": hard_loss(student, context),
            "joint": joint_loss(student, context, config.weights)}[config.objective]  # fmt: skip
    context.fit(student, loss, rows, _as_long_as_the_stages(context, config), "train", validate_start=False)
    return student


def _in_stages(
    context: MethodContext, texts: MethodContext, student: BiLstmForSequenceClassification, config: Config
) -> BiLstmForSequenceClassification:
    """Representation, then logits, then labels (algorithm 1)."""
    rows, held_out = texts.with_targets(list(columns(context.layer_map, config))), _held_out(len(texts.train))
    train, judge = rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))
    times = 1.0 if config.unfreeze else len(PARTS)
    logits = config.logits.stretched(times)
    if config.learn_representation:
        loss = representation_loss(student, context)
        context.fit_by_loss(student, loss, train, judge, config.representation, "representation")
    else:
        steps = total_steps(train, config.representation) * times / len(PARTS)
        logits = of_steps(logits, round(total_steps(train, logits) + steps))
    for part in unfreeze(student, config.unfreeze):
        context.fit_by_loss(student, logit_loss(student, context), train, judge, logits, f"logits-{part}")
    if config.labels:
        _new_head(student, context.seed)
        labels = config.labels.stretched(times)
        for number, part in enumerate(unfreeze(student, config.unfreeze)):
            loss = context.label_loss(student)
            context.fit(student, loss, context.train, labels, f"labels-{part}", validate_start=number > 0)
    return student


def unfreeze(student: BiLstmForSequenceClassification, gradually: bool) -> Iterator[str]:
    """Unfreeze the student from the top, one part more each time, and name the part; or all of it at once."""
    parts = {name: student.get_submodule(module) for name, module in PARTS.items()}
    student.requires_grad_(not gradually)
    for name, part in parts.items() if gradually else [("all", student)]:
        part.requires_grad_(True)
        yield name


def _new_head(student: BiLstmForSequenceClassification, seed: int) -> None:
    """Draw the head again, as stage 3 of the official code does."""
    seed_everything(seed)
    student.classifier.reset_parameters()


def _held_out(rows: int) -> np.ndarray:
    return np.arange(rows) % HELD_OUT == 0


def _as_long_as_the_stages(context: MethodContext, config: Config) -> TrainingConfig:
    """One phase that takes as many steps as the stages do on this context's rows."""
    everything = context.with_transfer().train
    train = everything.select(np.flatnonzero(~_held_out(len(everything))))
    labels = total_steps(context.train, config.labels) if config.labels else 0
    steps = total_steps(train, config.representation) + len(PARTS) * (total_steps(train, config.logits) + labels)
    return of_steps(config.representation, steps)


def representation_loss(student: BiLstmForSequenceClassification, context: MethodContext) -> Loss:
    """The squared error to what the teacher's head reads."""
    return lambda batch: context.representation_loss(forward_batch(student, batch).hidden_states[0], batch)


def logit_loss(student: BiLstmForSequenceClassification, context: MethodContext) -> Loss:
    """Half the squared error of the logits (section 3.3: no temperature)."""
    return lambda batch: _logits(context, forward_batch(student, batch), batch)


def _logits(context: MethodContext, output: Any, batch: Batch) -> Tensor:
    ours, teachers = (context.drop_padding(v, batch) for v in (output.logits, batch.targets["logits"]))
    return F.mse_loss(ours.float(), teachers) / 2


def joint_loss(student: BiLstmForSequenceClassification, context: MethodContext, weights: WeightsConfig) -> Loss:
    """All three losses, weighted; that of the labels over the rows that have one (section 3.3, the joint variant)."""

    def loss(batch: Batch) -> Tensor:
        output = forward_batch(student, batch)
        representation, logits = (
            context.representation_loss(output.hidden_states[0], batch),
            _logits(context, output, batch),
        )
        hard = context.hard_loss(output.logits, batch)
        return weights.labels * hard + weights.logits * logits + weights.representation * representation

    return loss


def hard_loss(student: BiLstmForSequenceClassification, context: MethodContext) -> Loss:
    """Cross entropy of the labels and, of rows without one, of the teacher's prediction (1910.01769; our reconstruction). Of
    tagging tasks a word's first token counts."""

    def loss(batch: Batch) -> Tensor:
        predicted = _predicted(context.task, batch.targets["logits"])
        missing = ~losses.has_label(batch.label) if batch.word is None else (batch.label < 0) & (batch.word >= 0)
        missing = missing[:, None] if context.task.kind is TaskKind.MULTILABEL else missing
        label = torch.where(missing, predicted.to(batch.label.dtype), batch.label)
        return losses.task_loss(context.task.kind, forward_batch(student, batch).logits, label)

    return loss


def _predicted(task: Task, logits: Tensor) -> Tensor:
    """What a teacher answers: classes, numbers, or for multilabel rows 0 and 1 [B, C]."""
    if task.kind is TaskKind.MULTILABEL:
        return logits > 0
    return logits.argmax(-1) if task.labels else logits[:, 0]


def new_bilstm(context: MethodContext, shape: ShapeConfig) -> BiLstmForSequenceClassification:
    """A fresh student whose embedding has the tokens seen in training and transfer rows; all others share their mean.

    Raises:
        FilbertError: the embedding is wider than the table that it would start from, or the rows' tokens are not its.
    """
    context.check_vocabulary()
    seed_everything(context.seed)
    seen = torch.from_numpy(np.unique(context.with_transfer().train.ids).astype(np.int64))
    from_checkpoint = shape.embedding_init == "checkpoint"
    source = checkpoints.load_model(
        context.checkpoint if from_checkpoint else context.teacher, fresh_head=from_checkpoint
    )
    table = source.get_input_embeddings().weight.detach()  # type: ignore[operator]
    config = BiLstmConfig(
        vocab_size=len(table),
        kept_vocab_size=len(seen) + 1,
        embedding_size=shape.embedding,
        lstm_size=shape.lstm,
        hidden_size=load_config(context.teacher).hidden_size,
        pooling=shape.pooling,
        dropout=shape.dropout,
        activation=shape.activation,
        **_pair_fields(context, shape),
        **checkpoints.label_fields(context.task),
    )
    tags = context.task.kind is TaskKind.TAGGING
    student = (BiLstmForTokenClassification if tags else BiLstmForSequenceClassification)(config)
    student.rows[seen] = torch.arange(1, len(seen) + 1, dtype=torch.int32)
    if shape.embedding_init != "random":
        known = _word_vectors(context, seen) if shape.embedding_init == "word_vectors" else table[seen].float()
        start = low_rank_factors(known, shape.embedding)[0]
        with torch.no_grad():
            student.embedding.weight.copy_(torch.cat([start.mean(0, keepdim=True), start]))
    return student


def _pair_fields(context: MethodContext, shape: ShapeConfig) -> dict[str, Any]:
    """How the student reads its rows: as two texts where the task has pairs and the shape says so.

    Raises:
        FilbertError: the tokenizer has no token between the texts of a pair.
    """
    if shape.pairs == "joint" or len(context.task.columns) < 2:
        return {"pairs": "joint"}
    tokenizer = load_tokenizer(context.teacher)
    if tokenizer.sep_token_id is None:
        raise FilbertError(
            f"shape.pairs: expected a tokenizer with a separator, got none in {context.teacher}; take joint"
        )
    return {"pairs": "siamese", "sep_token_id": tokenizer.sep_token_id}


def _word_vectors(context: MethodContext, seen: Tensor) -> Tensor:
    """The word vectors of tokens that are words; of all others their mean: [tokens, width]."""
    if context.word_vectors is None:
        raise FilbertError("shape.embedding_init: this stage has no word vectors; take svd or random")
    vectors = WordVectors(context.word_vectors, max_words=400_000)
    tokens = load_tokenizer(context.teacher).convert_ids_to_tokens(seen.tolist())
    at = [vectors.index.get(token.lstrip("▁Ġ").lower(), -1) for token in tokens]
    table = torch.from_numpy(np.concatenate([vectors.table, vectors.table.mean(0, keepdims=True)]))
    return table[at]
