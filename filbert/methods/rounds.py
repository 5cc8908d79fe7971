"""ROSITA's stages (Liu, Lin, Yuan 2021, AAAI, arXiv 2103.11367; official code): what its settings are put together from.

A student learns its teacher's prediction, or its states too; it is cut at once, or in rounds while it learns. Rounds are
equally spaced in the first `proportion` of the training; each begins with a new optimiser and no scores. Teachers are asked
once and read from a cache, earlier students too: in evaluation mode, where the official code left dropout on. One head, BERT's
own, serves all stages, where the official code puts a ReLU before that of all stages but the first.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from filbert.data.batches import Batch, TokenizedDataset
from filbert.methods.context import MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import Student, encoder_class, forward_batch
from filbert.models.pruning import ImportanceRecorder, PruningError, UnitScores, interpolate, keep_all, prune, top_k
from filbert.models.size import representative_batch
from filbert.models.widths import allocate_budget, cost_counter
from filbert.training import losses
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig, total_steps

Loss = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class TargetConfig:
    """The shape to arrive at: the same heads and neurons in each layer, or a budget that importance divides among layers."""

    layers: int | None  # none: as many as the start has
    rank: int  # of the factorised word embedding; 0: it is not factorised
    heads: int | None
    intermediate: int | None
    parameters: int | None  # at most so many
    multiply_adds: int | None  # at most so many, on the training row of median length

    def __post_init__(self) -> None:
        given = [name for name in ("heads", "intermediate", "parameters", "multiply_adds") if getattr(self, name)]
        if given not in (["heads", "intermediate"], ["parameters"], ["multiply_adds"]):
            raise PruningError(f"a target needs heads and intermediate, or parameters, or multiply_adds; got {given}")


@dataclass(frozen=True)
class RoundsConfig:
    proportion: float  # of the training that the rounds take; what is left is trained in the final shape
    rounds: int | None  # none: one for each head, or layer, that goes from a layer
    fit: TrainingConfig


@dataclass(frozen=True)
class ThreeStagesConfig:
    """Setting 4 of the official code."""

    target: TargetConfig
    second_teacher: TrainingConfig
    depth: RoundsConfig
    width: RoundsConfig


def three_stages(study: MethodContext, config: ThreeStagesConfig) -> FilbertForSequenceClassification:
    """Distil, shorten, narrow: what the teacher says is asked of it, what earlier students say of them."""
    student = second_teacher(study, config.target, config.second_teacher)
    shorter = pruned_in_depth(study, student, config.target, config.depth)
    return pruned_in_width(study, shorter, shorter, config.target, config.width)


def logits_only(depth: LayerMap) -> tuple[str, ...]:
    """The columns of a method whose students learn the teacher's prediction, and the rest of earlier students."""
    return ("logits",)


def prediction_loss(study: MethodContext, student: Student) -> Loss:
    """Soft cross entropy at temperature 1, its mean over batch and classes, and no labels."""
    return lambda batch: _prediction(study, forward_batch(student, batch).logits, batch)


def state_loss(study: MethodContext, student: Student, teacher_layers: int) -> Loss:
    """The mean squared errors of the embedding output and all states, and the prediction."""
    followed = followed_states(student.config.num_hidden_layers, teacher_layers)

    def loss(batch: Batch) -> Tensor:
        answer = forward_batch(student, batch, states=True)
        pairs = zip(answer.hidden_states, (batch.targets[column] for column in followed), strict=True)
        hidden = torch.stack([losses.hidden_state_mse(ours, theirs, batch.mask) for ours, theirs in pairs]).sum()
        return hidden + _prediction(study, answer.logits, batch)

    return loss


def _prediction(study: MethodContext, logits: Tensor, batch: Batch) -> Tensor:
    return study.soft_loss(logits, batch, 1.0) / study.task.outputs


def followed_states(layers: int, teacher_layers: int) -> list[str]:
    """The teacher's states that a student of so many layers follows: 12 -> 8 are 0, 1, 3, 4, 6, 7, 9, 10, 12; where TinyBERT's
    map would round, this one cuts off, as the official code does."""
    return [f"hidden.{layer * teacher_layers // layers}" for layer in range(layers + 1)]


def from_teacher(study: MethodContext, teacher: Student, layers: int) -> TokenizedDataset:
    """The training rows with what `learn_states` of a student of so many layers needs of an earlier student, its teacher."""
    columns = ["logits", *followed_states(layers, teacher.config.num_hidden_layers)]
    return study.with_targets_of(study.cache_predictions(teacher, columns), columns)


def check_target(target: TargetConfig, start: FilbertForSequenceClassification) -> None:
    """Refuse, before anything is trained, a target that a start cannot be cut to.

    Raises:
        PruningError: the target has more of something.
    """
    shape: Any = start.config
    most = {
        "layers": shape.num_hidden_layers,
        "rank": shape.embedding_size or shape.hidden_size,
        "heads": max(shape.layer_heads),
        "intermediate": max(shape.layer_intermediate),
    }
    for name, there in most.items():
        if (getattr(target, name) or 0) > there:
            raise PruningError(
                f"target.{name}: expected at most {there}, what the start has; got {getattr(target, name)}"
            )


def teacher_as_student(study: MethodContext, target: TargetConfig) -> FilbertForSequenceClassification:
    """The fine-tuned teacher as a student, to be cut to `target`."""
    student = study.cut_from_teacher(range(study.depth.teacher))
    check_target(target, student)
    return student


def second_teacher(
    study: MethodContext, target: TargetConfig, config: TrainingConfig
) -> FilbertForSequenceClassification:
    """BERT-base(student): all layers of the pretrained checkpoint, taught the teacher's prediction, to be cut to `target`."""
    student = study.student_of(encoder_class(study.task), layers=range(study.depth.teacher))
    check_target(target, student)
    study.fit(student, prediction_loss(study, student), study.with_targets(["logits"]), config, "second_teacher")
    return student


def pruned_at_once(study: MethodContext, student: Student, target: TargetConfig, config: TrainingConfig) -> Student:
    """Gather importance in one pass over the labels, the student learning meanwhile, then cut it in one step."""
    with ImportanceRecorder(student) as importance:
        unscored = replace(config, validations=0)  # the last weights and all gradients count
        study.fit(student, study.label_loss(student), study.train, unscored, "importance", beside=importance)
        scores = importance.scores()[: target.layers]
    return _to_width(study, prune(student, keep_all(student, target.layers)), scores, target, 1, 1, student)


def pruned_in_depth(study: MethodContext, student: Student, target: TargetConfig, config: RoundsConfig) -> Student:
    """Take layers from the top, one a round, while the student learns its former self's prediction."""
    before = student.config.num_hidden_layers
    layers = target.layers or before
    rounds = config.rounds or before - layers

    def shorter(present: Student, _: list[UnitScores], number: int) -> Student:
        return prune(present, keep_all(present, interpolate(before, layers, number, rounds)))

    rows = study.with_targets_of(study.cache_predictions(student, ["logits"]), ["logits"])
    return _in_rounds(
        study,
        student,
        lambda present: prediction_loss(study, present),
        rows,
        shorter,
        rounds,
        config,
        "depth",
        scored=False,
    )


def pruned_in_width(
    study: MethodContext, student: Student, teacher: Student, target: TargetConfig, config: RoundsConfig
) -> Student:
    """Take heads, neurons and rank in rounds while the student learns its teacher's states and prediction."""
    layers, teacher_layers = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    rounds = config.rounds or max(1, max(student.config.layer_heads) - (target.heads or 1))
    start = student

    def narrower(present: Student, scores: list[UnitScores], number: int) -> Student:
        return _to_width(study, present, scores, target, number, rounds, start)

    rows = from_teacher(study, teacher, layers)
    return _in_rounds(
        study,
        student,
        lambda present: state_loss(study, present, teacher_layers),
        rows,
        narrower,
        rounds,
        config,
        "width",
    )


def _to_width(
    study: MethodContext,
    student: Student,
    scores: list[UnitScores],
    target: TargetConfig,
    number: int,
    rounds: int,
    start: Student,
) -> Student:
    """The student after a round of several that lead from the widths of `start` to those of `target`."""
    shape, rank = start.config, 0
    if target.rank:
        rank = interpolate(shape.embedding_size or shape.hidden_size, target.rank, number, rounds)
    if target.heads and target.intermediate:
        heads = interpolate(max(shape.layer_heads), target.heads, number, rounds)
        neurons = interpolate(max(shape.layer_intermediate), target.intermediate, number, rounds)
        return prune(student, top_k(scores, heads, neurons), rank)
    kind = "parameters" if target.parameters else "multiply_adds"
    count = cost_counter(kind, representative_batch(study.train, 1).to(study.device))
    budget = interpolate(count(start), getattr(target, kind), number, rounds)
    student = prune(student, keep_all(student), rank)  # what is left of the budget depends on the rank
    return prune(student, allocate_budget(student, scores, count, budget))


def _in_rounds(
    study: MethodContext,
    student: Student,
    loss: Callable[[Student], Loss],
    rows: TokenizedDataset,
    smaller: Callable[[Student, list[UnitScores], int], Student],
    rounds: int,
    config: RoundsConfig,
    phase: str,
    scored: bool = True,
) -> Student:
    """Train; after each round go on with a smaller student; keep the best of the final shape."""
    total = total_steps(rows, config.fit)
    ends = [round(config.proportion * total * number / rounds) for number in range(rounds + 1)] if rounds else [0]
    if len(set(ends)) <= rounds or ends[-1] >= total:
        raise PruningError(
            f"{phase}: {rounds} rounds do not fit in {config.proportion} of {total} steps, a step each and some after; raise "
            "`epochs` or change `proportion`"
        )
    unscored = replace(config.fit, validations=0)
    for number, window in enumerate(pairwise(ends), start=1):
        with ImportanceRecorder(student) if scored else nullcontext() as importance:
            study.fit(student, loss(student), rows, unscored, phase, beside=importance, window=window)
            student = smaller(student, importance.scores() if importance else [], number)
    study.fit(student, loss(student), rows, config.fit, phase, window=(ends[-1], total))
    return student
