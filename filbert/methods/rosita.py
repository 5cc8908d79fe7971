"""ROSITA (Liu, Lin, Yuan 2021, AAAI, arXiv 2103.11367): structured pruning, factorisation and distillation, iterated.

The four settings of the official code:

    1  teacher, pruned at once, learns the teacher's states and prediction
    2  teacher -> second teacher (all layers, learns the prediction) -> pruned at once, learns from the second teacher
    3  teacher -> second teacher -> its bottom layers -> pruned in width, iteratively, while it learns from the second teacher
    4  teacher -> second teacher -> pruned in depth, iteratively -> pruned in width, iteratively (ROSITA)

A model that is pruned learns from itself as it was before. Pruning events are equally spaced in the first `proportion` of a
phase; each is followed by a new optimiser and new importance scores. Operators are in models/pruning.py.

Read from the official code, not from the paper's text. Ours: teachers are in evaluation mode and cached, earlier students too,
where the code leaves dropout on; one head, BERT's own, serves all stages, where the code puts a ReLU before it in all stages
but the first; AdamW. `distill: false` is a control: setting 1 on labels alone. `transfer: true` learns from transfer rows too,
as the paper does from augmented data. A chain prunes a student of any method further (`prune_further`).
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from filbert.cache.retrieval import ReferenceReader, ReferenceSettings, reference_columns
from filbert.data.batches import Batch, TokenizedDataset
from filbert.methods.context import Loss, MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import HISTORY, Student, encoder_class, forward_batch, load_prunable
from filbert.models.pruning import ImportanceRecorder, PruningError, UnitScores, interpolate, keep_all, prune
from filbert.models.reference_bert import ReferenceForSequenceClassification
from filbert.models.reference_store import FOLDER, ReferenceStore
from filbert.models.width_allocation import TargetConfig, check_target, prune_towards
from filbert.runtime.config import Fraction, PositiveInt
from filbert.training import losses
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig, total_steps


@dataclass(frozen=True)
class IterativeConfig:
    """A phase in which the student is pruned while it learns."""

    proportion: Fraction  # of the steps, during which pruning events take place; the rest trains the final shape
    rounds: PositiveInt | None  # pruning events; none: one for each head, or layer, that a layer, or the encoder, loses
    training: TrainingConfig


@dataclass(frozen=True)
class Config:
    setting: Literal[1, 2, 3, 4]  # of the official code
    distill: bool  # false, in setting 1: the pruned student learns from labels alone
    transfer: bool  # whether all phases but `importance` learn from transfer rows, too
    target: TargetConfig
    second_teacher: TrainingConfig
    importance: TrainingConfig  # settings 1 and 2: the pass over the labels that gathers importance
    final: TrainingConfig  # settings 1 and 2: training in the final shape
    depth: IterativeConfig
    width: IterativeConfig


@dataclass(frozen=True)
class ChainConfig:
    """How a student of another method is pruned further."""

    target: TargetConfig
    depth: IterativeConfig | None  # none: layers are removed at once
    width: IterativeConfig


def columns(layer_map: LayerMap, config: Config) -> tuple[str, ...]:
    """The teacher's logits; in setting 1 the states that the target's layers follow, too. Later stages learn from students."""
    if config.setting > 1:
        return ("logits",)
    return (
        ("logits", *followed_states(config.target.layers or layer_map.teacher, layer_map.teacher))
        if config.distill
        else ()
    )


def compress(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Distil and prune by one of the four settings."""
    if config.transfer:
        context = context.with_transfer()
    layers, target = context.layer_map.teacher, config.target
    if config.setting == 1:
        start = context.cut_from_teacher(range(layers))
        check_target(target, start)
        return _prune_at_once(
            context, start, config, lambda student: _teacher_rows(context, student) if config.distill else None
        )
    second = _second_teacher(context, config)
    if config.setting == 2:
        rows = _student_rows(context, second, target.layers or layers)
        return _prune_at_once(context, second, config, lambda _: rows)
    if config.setting == 3:
        shorter, teacher = prune(second, keep_all(second, target.layers)), second
    else:
        shorter = teacher = prune_depth(context, second, target, config.depth)
    return prune_width(context, shorter, teacher, target, config.width)


def _second_teacher(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """BERT_BASE(student) of the code: all layers of the pretrained checkpoint, taught the teacher's prediction."""
    student = context.new_student_of_class(encoder_class(context.task), layers=range(context.layer_map.teacher))
    check_target(config.target, student)
    loss, rows = prediction_loss(context, student), context.with_targets(["logits"])
    context.fit(student, loss, rows, config.second_teacher, "second_teacher")
    return student


def _prune_at_once(
    context: MethodContext, student: Student, config: Config, rows_for: Callable[[Student], TokenizedDataset | None]
) -> Student:
    """Gather importance in one pass over the labels while the student trains, prune it in one step, train the final shape."""
    with ImportanceRecorder(student) as importance:
        unscored = replace(config.importance, validations=0)  # the last weights and all gradients count
        context.fit(student, context.label_loss(student), context.train, unscored, "importance", importance)
        scores = importance.scores()[: config.target.layers]
    shallow = prune(student, keep_all(student, config.target.layers))
    pruned = prune_towards(config.target, shallow, scores, 1, 1, student, context.train, context.device)
    if rows := rows_for(pruned):
        loss = state_loss(context, pruned, context.layer_map.teacher)
        context.fit(pruned, loss, rows, config.final, "distill")
    else:
        context.fit(pruned, context.label_loss(pruned), context.train, config.final, "train")
    return pruned


def prune_depth(context: MethodContext, student: Student, target: TargetConfig, config: IterativeConfig) -> Student:
    """Remove layers from the top, some per event, while the student learns the prediction that it had before."""
    before = student.config.num_hidden_layers
    layers = target.layers or before
    rounds = config.rounds or before - layers
    rows = context.with_targets_of(context.cache_predictions(student, ["logits"]), ["logits"])

    def shorten(present: Student, _: list[UnitScores], event: int) -> Student:
        return prune(present, keep_all(present, interpolate(before, layers, event, rounds)))

    return _prune_iteratively(
        context,
        student,
        lambda present: prediction_loss(context, present),
        rows,
        shorten,
        rounds,
        config,
        "depth",
        False,
    )


def prune_width(
    context: MethodContext, student: Student, teacher: Student, target: TargetConfig, config: IterativeConfig
) -> Student:
    """Remove heads, neurons and embedding rank, some per event, while the student learns `teacher`'s states and prediction."""
    layers, teacher_layers = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    rounds = config.rounds or max(1, max(student.config.layer_heads) - (target.heads or 1))
    rows, start = _student_rows(context, teacher, layers), student

    def narrow(present: Student, scores: list[UnitScores], event: int) -> Student:
        return prune_towards(target, present, scores, event, rounds, start, context.train, context.device)

    return _prune_iteratively(
        context,
        student,
        lambda present: state_loss(context, present, teacher_layers),
        rows,
        narrow,
        rounds,
        config,
        "width",
        True,
    )


def _prune_iteratively(
    context: MethodContext,
    student: Student,
    loss: Callable[[Student], Loss],
    rows: TokenizedDataset,
    smaller: Callable[[Student, list[UnitScores], int], Student],
    rounds: int,
    config: IterativeConfig,
    phase: str,
    scored: bool,
) -> Student:
    """Train; at each event go on with a smaller student and a new optimiser; keep the best weights of the final shape."""
    total = total_steps(rows, config.training)
    ends = [round(config.proportion * total * event / rounds) for event in range(rounds + 1)] if rounds else [0]
    if len(set(ends)) <= rounds or ends[-1] >= total:
        raise PruningError(
            f"{phase}: {rounds} pruning events do not fit in {config.proportion} of {total} steps, a step each and some after; "
            "raise `epochs` or change `proportion`"
        )
    unscored = replace(config.training, validations=0)
    for event, steps in enumerate(pairwise(ends), start=1):
        with ImportanceRecorder(student) if scored else nullcontext() as importance:
            context.fit(student, loss(student), rows, unscored, phase, importance, step_range=steps)
            student = smaller(student, importance.scores() if importance else [], event)
    context.fit(student, loss(student), rows, config.training, phase, step_range=(ends[-1], total))
    return student


def prediction_loss(context: MethodContext, student: Student) -> Loss:
    """Soft cross entropy at temperature 1, its mean over batch and classes; no labels."""
    return lambda batch: _prediction(context, forward_batch(student, batch).logits, batch)


def state_loss(context: MethodContext, student: Student, teacher_layers: int) -> Loss:
    """The sum of the mean squared errors of the embedding output and all hidden states, and the prediction loss."""
    followed = followed_states(student.config.num_hidden_layers, teacher_layers)

    def loss(batch: Batch) -> Tensor:
        output = forward_batch(student, batch, states=True)
        pairs = zip(output.hidden_states, (batch.targets[column] for column in followed), strict=True)
        hidden = torch.stack([losses.hidden_state_mse(ours, teachers, batch.mask) for ours, teachers in pairs]).sum()
        return hidden + _prediction(context, output.logits, batch)

    return loss


def _prediction(context: MethodContext, logits: Tensor, batch: Batch) -> Tensor:
    return context.soft_loss(logits, batch, 1.0) / context.task.outputs


def followed_states(layers: int, teacher_layers: int) -> list[str]:
    """The teacher's states that a student of so many layers follows: 12 -> 8 are 0, 1, 3, 4, 6, 7, 9, 10, 12. Rounded down, as the
    official code does, where TinyBERT's map would round."""
    return [f"hidden.{layer * teacher_layers // layers}" for layer in range(layers + 1)]


def _teacher_rows(context: MethodContext, student: Student) -> TokenizedDataset:
    """The training rows with the cached teacher's outputs that `state_loss` needs."""
    return context.with_targets(
        ["logits", *followed_states(student.config.num_hidden_layers, context.layer_map.teacher)]
    )


def _student_rows(context: MethodContext, teacher: Student, layers: int) -> TokenizedDataset:
    """The training rows with the outputs of `teacher`, an earlier student, that `state_loss` of so many layers needs."""
    needed = ["logits", *followed_states(layers, teacher.config.num_hidden_layers)]
    return context.with_targets_of(context.cache_predictions(teacher, needed), needed)


def chain_columns(start: Path, layer_map: LayerMap) -> tuple[str, ...]:
    """What a chain needs of the teacher's cache: what is read of references, where the start reads any; it is its own teacher."""
    return reference_columns(layer_map.teacher) if (start / FOLDER).exists() else ()


def prune_further(context: MethodContext, start: Path, config: ChainConfig) -> FilbertForSequenceClassification:
    """Prune the student in the folder `start` in depth and in width; it learns from itself as it was before."""
    student = load_prunable(start, context.task)
    check_target(config.target, student)
    context.recorder.inherit(start / HISTORY, "start")
    store = ReferenceStore(start / FOLDER) if isinstance(student, ReferenceForSequenceClassification) else None
    if store is not None:
        context = _with_references(context, store)
    if config.depth is not None:
        student = teacher = prune_depth(context, student, config.target, config.depth)
    else:
        student, teacher = prune(student, keep_all(student, config.target.layers)), student
    student = prune_width(context, student, teacher, config.target, config.width)
    if isinstance(student, ReferenceForSequenceClassification):
        student.store = store
    return student


def _with_references(context: MethodContext, store: ReferenceStore) -> MethodContext:
    """The context whose rows carry the references that the store finds for them; a training row is never its own."""
    settings, read = ReferenceSettings(store.count, "int8"), reference_columns(context.layer_map.teacher)
    reader = ReferenceReader(context.references, context.cache, context.train, read, store.kind, settings)
    train, validation = reader.of("train", context.train), reader.of("validation", context.validation)
    return replace(
        context, train=context.train.with_targets(train), validation=context.validation.with_targets(validation)
    )
