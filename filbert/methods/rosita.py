"""ROSITA (Liu, Lin, Yuan 2021, AAAI, arXiv 2103.11367): structured pruning, factorisation and distillation, iterated.

The four settings of the official code:

    1  teacher, pruned at once, learns the teacher's states and prediction
    2  teacher -> second teacher (all layers, learns the prediction) -> pruned at once, learns from the second teacher
    3  teacher -> second teacher -> its bottom layers -> pruned in width, iteratively, while it learns from the second teacher
    4  teacher -> second teacher -> pruned in depth, iteratively -> pruned in width, iteratively (ROSITA)

Pruning events are in the first `proportion` of a phase. Operators are in models/pruning.py. The official code lets a model that
is pruned learn from itself as it was before, begins each round with a new optimiser and new importance scores, and trains the
final shape in the last phase's remaining steps.

Read from the official code, not from the paper's text. Ours, and the default where it is better (docs/papers/rosita.md): all
stages learn the first teacher's logits, with labels (`prediction`); Adam's moments and the sums of importance go on over an event
(`carry`), the first of which waits for enough batches (`gather`); the second teacher may be the teacher itself
(`second_teacher: null`); the final shape is trained long at a higher rate, on states as well (`final`), or on the prediction alone
and transfer rows, too (`recovery`, off). Also ours: teachers
are in evaluation mode and cached, earlier students too, where the code leaves dropout on; one head, BERT's own, serves all
stages, where the code puts a ReLU before it in all stages but the first; AdamW. `distill: false` is a control: setting 1 on
labels alone. A chain prunes a student of any method further (`prune_further`).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from filbert.cache.retrieval import ReferenceReader, ReferenceSettings, reference_columns
from filbert.data.batches import Batch, TokenizedDataset
from filbert.data.tasks import TaskKind
from filbert.methods.context import Loss, MethodContext
from filbert.models import pruning
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import HISTORY, Student, encoder_class, forward_batch, load_prunable
from filbert.models.pruning import ImportanceRecorder, KeptUnits, PruningError, UnitScores, interpolate, keep_all, prune
from filbert.models.reference_bert import ReferenceForSequenceClassification
from filbert.models.reference_store import FOLDER, ReferenceStore
from filbert.models.width_allocation import TargetConfig, check_target, widths_towards
from filbert.runtime.config import Fraction, NonNegativeInt, Positive, PositiveInt, Range
from filbert.training import losses
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig, total_steps
from filbert.training.optimizer import Moments

Widths = tuple[list[KeptUnits], int]  # what a pruning event leaves: the units of each layer, the rank of the embedding


@dataclass(frozen=True)
class IterativeConfig:
    """A phase in which the student is pruned while it learns."""

    proportion: Fraction  # of the steps, during which pruning events take place; the rest trains the final shape
    rounds: PositiveInt | None  # pruning events; none: one for each head, or layer, that a layer, or the encoder, loses
    gather: NonNegativeInt  # steps before the first event; 0: as many as from one event to the next
    carry: bool  # whether the moments and the sums of importance of what is kept go on over an event
    training: TrainingConfig


@dataclass(frozen=True)
class PredictionConfig:
    """The prediction loss of all stages, (w T² KL + (1 - w) CE) / classes; the paper's is `former`, T = 1, w = 1, `label`."""

    logits: Literal["teacher", "former"]  # whose: the first teacher's, or those of the model as it was before
    temperature: Positive  # T
    teacher_weight: Fraction  # w
    regression: Literal["label", "teacher"]  # which number a regression learns


@dataclass(frozen=True)
class Config:
    setting: Literal[1, 2, 3, 4]  # of the official code
    distill: bool  # false, in setting 1: the pruned student learns from labels alone
    transfer: Literal["recovery", "all"] | None  # which phases learn from transfer rows, too; never `importance`
    labelled: Annotated[float, Range(0, 0.9)]  # least share of labelled rows in `recovery`, with transfer rows
    prediction: PredictionConfig
    target: TargetConfig
    second_teacher: TrainingConfig | None  # none: the teacher itself is the second teacher
    importance: TrainingConfig  # settings 1 and 2: the pass over the labels that gathers importance
    depth: IterativeConfig
    width: IterativeConfig
    final: TrainingConfig | None  # the final shape, on states and prediction; none in the official settings 3 and 4
    recovery: TrainingConfig | None  # ours: the final shape, on the first teacher's logits and on labels


@dataclass(frozen=True)
class ChainConfig:
    """How a student of another method is pruned further."""

    transfer: Literal["recovery", "all"] | None
    labelled: Annotated[float, Range(0, 0.9)]
    prediction: PredictionConfig
    target: TargetConfig
    depth: IterativeConfig | None  # none: layers are removed at once
    width: IterativeConfig
    final: TrainingConfig | None
    recovery: TrainingConfig | None


def columns(layer_map: LayerMap, config: Config) -> tuple[str, ...]:
    """The teacher's logits; in setting 1 the states that the target's layers follow, too. Later stages learn from students."""
    if not config.distill:
        return ()
    if config.setting > 1:
        return ("logits",)
    return ("logits", *followed_states(config.target.layers or layer_map.teacher, layer_map.teacher))


def compress(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Distil and prune by one of the four settings, then train the final shape."""
    student = prune_by_setting(context, config)
    return recover(context, student, config) if config.distill else student


def prune_by_setting(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """A student of the target shape by one of the official code's settings."""
    layers, target, prediction = context.layer_map.teacher, config.target, config.prediction
    every = context.with_transfer() if config.transfer == "all" and config.distill else context
    if config.setting == 1:
        start = context.cut_from_teacher(range(layers))
        check_target(target, start)
        return _prune_at_once(
            context, start, config, lambda student: _teacher_rows(every, student) if config.distill else None
        )
    second = _second_teacher(every, config)
    if config.setting == 2:
        rows = _prediction_rows(every, second, prediction, followed_states(target.layers or layers, layers))
        return _prune_at_once(context, second, config, lambda _: rows)
    if config.setting == 3:
        shorter, teacher = prune(second, keep_all(second, target.layers)), second
    else:
        shorter = teacher = prune_depth(every, second, target, config.depth, prediction)
    return prune_width(every, shorter, teacher, config)


def _second_teacher(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """BERT_BASE(student) of the code: all layers of the pretrained checkpoint, taught the teacher's prediction; or the teacher."""
    layers = range(context.layer_map.teacher)
    if config.second_teacher is None:
        student = context.cut_from_teacher(layers)
        check_target(config.target, student)
        return student
    student = context.new_student_of_class(encoder_class(context.task), layers=layers)
    check_target(config.target, student)
    loss, rows = prediction_loss(context, student, config.prediction), context.with_targets(["logits"])
    context.fit(student, loss, rows, config.second_teacher, "second_teacher", validate_start=False)
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
    pruned = prune(
        shallow, *widths_towards(config.target, shallow, scores, 1, 1, student, context.train, context.device)
    )
    if not config.final:
        return pruned
    if rows := rows_for(pruned):
        loss = state_loss(context, pruned, context.layer_map.teacher, config.prediction)
        context.fit(pruned, loss, rows, config.final, "distill")
    else:
        context.fit(pruned, context.label_loss(pruned), context.train, config.final, "train")
    return pruned


def recover(context: MethodContext, student: Student, config: Config | ChainConfig) -> Student:
    """Train the final shape on the first teacher's logits and on labels; on transfer rows, too, where they are learnt from."""
    if config.recovery is None:
        return student
    if config.transfer:
        context = context.with_transfer(config.labelled)
    loss, rows = prediction_loss(context, student, config.prediction), context.with_targets(["logits"])
    context.fit(student, loss, rows, config.recovery, "recovery")
    return student


def prune_depth(
    context: MethodContext, student: Student, target: TargetConfig, config: IterativeConfig, prediction: PredictionConfig
) -> Student:  # fmt: skip
    """Remove layers from the top, some per event, while the student learns a prediction: its own of before, or the teacher's."""
    before = student.config.num_hidden_layers
    layers = target.layers or before
    rounds = config.rounds or before - layers

    def shorten(present: Student, _: list[UnitScores], event: int) -> Widths:
        return keep_all(present, interpolate(before, layers, event, rounds)), 0

    def loss(present: Student) -> Loss:
        return prediction_loss(context, present, prediction)

    rows = _prediction_rows(context, student, prediction)
    return _prune_iteratively(context, student, loss, rows, shorten, rounds, config, "depth", scored=False)


def prune_width(context: MethodContext, student: Student, teacher: Student, config: Config | ChainConfig) -> Student:
    """Remove heads, neurons and embedding rank, some per event, while the student learns the states of `teacher`, its former self,
    and a prediction; then train the final shape on the same."""
    target, width, prediction, start = config.target, config.width, config.prediction, student
    layers, teacher_layers = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    rounds = width.rounds or max(1, max(student.config.layer_heads) - (target.heads or 1))

    def narrow(present: Student, scores: list[UnitScores], event: int) -> Widths:
        return widths_towards(target, present, scores, event, rounds, start, context.train, context.device)

    def loss(present: Student) -> Loss:
        return state_loss(context, present, teacher_layers, prediction)

    rows = _prediction_rows(context, teacher, prediction, followed_states(layers, teacher_layers))
    student = _prune_iteratively(context, student, loss, rows, narrow, rounds, width, "width", scored=True)
    if config.final:
        context.fit(student, loss(student), rows, config.final, "distill")
    return student


def _prune_iteratively(
    context: MethodContext, student: Student, loss: Callable[[Student], Loss], rows: TokenizedDataset,
    widths: Callable[[Student, list[UnitScores], int], Widths], rounds: int, config: IterativeConfig, phase: str, *, scored: bool,
) -> Student:  # fmt: skip
    """Train; at each event go on with a smaller student; keep the best weights of the final shape."""
    total = total_steps(rows, config.training)
    ends = pruning.event_steps(rounds, total, config.proportion, config.gather, phase)
    unscored = replace(config.training, validations=0)
    moments: Moments = {}
    sums: dict[str, Tensor] = {}
    for event, steps in enumerate(pairwise(ends), start=1):
        with ImportanceRecorder(student, sums) if scored else nullcontext() as importance:
            fitted = context.fit(
                student, loss(student), rows, unscored, phase, importance, step_range=steps, moments=moments
            )
            kept, rank = widths(student, importance.scores() if importance else [], event)
        size = student.config.head_size
        if config.carry:
            sums = pruning.slice_weights(importance.sums(), kept, size) if importance else {}
            moments = pruning.slice_moments(fitted.moments, kept, size, rank)
        student = prune(student, kept, rank)
    last = (ends[-1], total)
    context.fit(student, loss(student), rows, config.training, phase, step_range=last, moments=moments)
    return student


def prediction_loss(context: MethodContext, student: Student, config: PredictionConfig) -> Loss:
    """The prediction loss of `config` as `fit` takes it."""
    return lambda batch: _prediction(context, forward_batch(student, batch, logits_alone=True).logits, batch, config)


def state_loss(context: MethodContext, student: Student, teacher_layers: int, config: PredictionConfig) -> Loss:
    """The sum of the mean squared errors of the embedding output and all hidden states, and the prediction loss."""
    followed = followed_states(student.config.num_hidden_layers, teacher_layers)

    def loss(batch: Batch) -> Tensor:
        output = forward_batch(student, batch, states=True)
        pairs = zip(output.hidden_states, (batch.targets[column] for column in followed), strict=True)
        hidden = torch.stack([losses.hidden_state_mse(ours, teachers, batch.mask) for ours, teachers in pairs]).sum()
        return hidden + _prediction(context, output.logits, batch, config)

    return loss


def _prediction(context: MethodContext, logits: Tensor, batch: Batch, config: PredictionConfig) -> Tensor:
    if context.task.kind is TaskKind.REGRESSION and config.regression == "label":
        return context.hard_loss(logits, batch)
    classes = 1 if context.task.kind is TaskKind.MULTILABEL else context.task.outputs  # a mean over labels already
    return context.kd_loss(logits, batch, config.temperature, config.teacher_weight) / classes


def followed_states(layers: int, teacher_layers: int) -> list[str]:
    """The teacher's states that a student of so many layers follows: 12 -> 8 are 0, 1, 3, 4, 6, 7, 9, 10, 12. Rounded down, as the
    official code does, where TinyBERT's map would round."""
    return [f"hidden.{layer * teacher_layers // layers}" for layer in range(layers + 1)]


def _teacher_rows(context: MethodContext, student: Student) -> TokenizedDataset:
    """The training rows with the cached teacher's outputs that `state_loss` needs."""
    return context.with_targets(
        ["logits", *followed_states(student.config.num_hidden_layers, context.layer_map.teacher)]
    )


def _prediction_rows(
    context: MethodContext, former: Student, prediction: PredictionConfig, states: Sequence[str] = ()
) -> TokenizedDataset:
    """The training rows with the logits that `prediction` names, and with states of `former`."""
    own = [*(["logits"] if prediction.logits == "former" else []), *states]
    context = replace(context, train=context.with_targets([] if "logits" in own else ["logits"]))
    return context.with_targets_of(context.cache_predictions(former, own), own) if own else context.train


def chain_columns(start: Path, layer_map: LayerMap, config: ChainConfig) -> tuple[str, ...]:
    """What a chain needs of the teacher's cache: its logits, if it learns them, and what is read of references, where the start
    reads any."""
    logits = ("logits",) if config.recovery or config.prediction.logits == "teacher" else ()
    return logits + (reference_columns(layer_map.teacher) if (start / FOLDER).exists() else ())


def prune_further(context: MethodContext, start: Path, config: ChainConfig) -> FilbertForSequenceClassification:
    """Prune the student in the folder `start` in depth and in width, then train the final shape."""
    student = load_prunable(start, context.task)
    check_target(config.target, student)
    context.recorder.inherit(start / HISTORY, "start")
    store = ReferenceStore(start / FOLDER) if isinstance(student, ReferenceForSequenceClassification) else None
    if store is not None:
        if config.transfer:
            raise PruningError(
                f"{start}: a student that reads references has none for transfer rows; set `transfer: null`"
            )
        context = _with_references(context, store)
    rows, prediction = context.with_transfer() if config.transfer == "all" else context, config.prediction
    if config.depth is not None:
        student = teacher = prune_depth(rows, student, config.target, config.depth, prediction)
    else:
        student, teacher = prune(student, keep_all(student, config.target.layers)), student
    student = prune_width(rows, student, teacher, config)
    student = recover(context, student, config)
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
