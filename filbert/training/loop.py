"""fit(): the one training loop. A killed run resumes and then ends bit-identical to a run that was never stopped.

Every random draw of a step depends on the seed and the step's number alone, and the order of an epoch's batches on the seed and the
epoch's number, so that (weights, optimiser, step) is the full state (resume.py). It lies in the scratch folder, no output of DVC's.
"""

import math
import os
import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from filbert import FilbertError
from filbert.data.batch_order import shuffled_batches, token_cuts
from filbert.data.batches import Batch, TokenizedDataset
from filbert.data.tasks import Task
from filbert.evaluation.metrics import predictions, scores_on
from filbert.models import checkpoints
from filbert.runtime import distributed, progress, signals
from filbert.runtime.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, section
from filbert.runtime.device import autocast
from filbert.runtime.files import RANK
from filbert.tracking.run_recorder import RunRecorder
from filbert.training.dropout import fast_dropout
from filbert.training.optimizer import Moments, RowAdamW, clip_gradients, moments_of, set_moments, sparse_embeddings
from filbert.training.resume import TrainingState, training_fingerprint

CHECKPOINT_SECONDS = float(os.environ.get("FILBERT_CHECKPOINT_SECONDS", "60"))
LOG_STEPS = 10
VALIDATION_BATCH = 64
RANK_SEED_OFFSET = 1 << 40  # between the seeds of two processes

T = TypeVar("T")
Loss = Callable[[Batch], Tensor]  # a batch on the device -> a scalar


class TrainingError(FilbertError):
    """Training cannot start or continue."""


@dataclass(frozen=True)
class TrainingConfig:
    """One phase of training: AdamW, linear warm-up, then `decay`. With 0 epochs nothing happens."""

    DEFAULTS: ClassVar[str] = "training"  # the section of params.yaml that completes each phase

    epochs: NonNegative  # may end within an epoch
    batch_size: PositiveInt
    learning_rate: Positive
    warmup: Fraction  # fraction of all steps
    decay: Literal["linear", "cosine", "none"]  # of the learning rate after the warm-up: to 0 at the end, or not at all
    weight_decay: NonNegative
    gradient_clip: Positive  # largest norm of the gradient
    validations: NonNegativeInt  # in the whole phase, the last one at its end; 0: the last weights are kept
    patience: PositiveInt  # validations without a better score after which the phase stops; not while it predicts one class alone
    min_steps: NonNegativeInt = 0  # a floor: so few rows are gone through more often
    max_steps: PositiveInt | None = None  # a budget, also of the floor
    batch_tokens: PositiveInt | None = None  # of a batch at most, padding included; instead of `batch_size` rows
    dropout: bool = True  # as the model's own configuration has it; or none

    def stretched(self, factor: float) -> "TrainingConfig":
        """The same for `factor` times as many epochs, floor and budget alike; a shorter phase is validated less often."""
        most = None if self.max_steps is None else max(1, round(self.max_steps * factor))
        some = self.validations if factor > 1 else max(min(self.validations, 1), round(self.validations * factor))
        steps = round(self.min_steps * factor)
        return replace(self, epochs=self.epochs * factor, min_steps=steps, max_steps=most, validations=some)


def section_for(task: Task, names: str | Sequence[str], shape: type[T]) -> T:
    """The section of params.yaml (`config.section`), its phases of training as long as the task asks (`training_fraction`)."""
    found: T = stretched_phases(section(names, shape), task.training_fraction)
    return found


def stretched_phases(settings: Any, factor: float) -> Any:
    """The same settings with every phase of training in them, at any depth, `factor` times as long."""
    if isinstance(settings, TrainingConfig):
        return settings.stretched(factor)
    if not is_dataclass(settings) or isinstance(settings, type):
        return settings
    parts = {part.name: stretched_phases(getattr(settings, part.name), factor) for part in fields(settings)}
    return replace(settings, **parts)


@dataclass(frozen=True)
class TrainingResult:
    """How a phase ended; the model has the weights of its best validation."""

    best: float
    best_step: int
    steps: int
    moments: Moments = field(compare=False)  # AdamW's, after the last step


def fit(
    model: nn.Module, loss: Loss, rows: TokenizedDataset, validate: Callable[[], dict[str, float]], config: TrainingConfig, *,
    phase: str, seed: int, device: torch.device, scratch: Path, recorder: RunRecorder, step_range: tuple[int, int] | None = None,
    moments: Moments | None = None, validate_start: bool = True, checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> TrainingResult:  # fmt: skip
    """Train the parameters of `model` that require a gradient on `loss`; keep the weights with the best `score`.

    With validations the weights that the phase starts from are validated, too: they stay where it finds none better.

    Args:
        loss: a batch on the device -> a scalar.
        validate: scores of the present weights on held-out rows; best is the highest `score` or, without one, the lowest `loss`.
            While `classes`, how many are predicted, is 1, the phase does not stop early.
        phase: the name under which this phase is recorded and resumed.
        step_range: only these steps, the first to before the second, of all that `config` asks for, with their rows and learning
            rates: a model that is pruned while it trains continues on the remaining rows.
        moments: AdamW's state to begin with, by parameter; none: a new optimiser.
        validate_start: whether the weights before the first step are validated, too; not where the head is new.

    Raises:
        TrainingError: the loss is not finite.
    """
    per_epoch = batches_per_epoch(rows, config)
    rows_per_step = config.batch_size if config.batch_tokens is None else max(1, round(len(rows) / per_epoch))
    total = total_steps(rows, config)
    begin, end = step_range or (0, total)
    last_recorded = math.inf if end == total else end  # later steps of the history belong to other ranges
    validation_steps = max(1, math.ceil((end - begin) / config.validations)) if config.validations else total + 1
    model.to(device).train()
    distributed.broadcast_weights(model)
    optimizer = new_optimizer(model, config)
    set_moments(model, optimizer, moments or {})
    fingerprint = training_fingerprint(model, rows, (config, step_range), seed, recorder.provenance)
    state = TrainingState(model, optimizer, scratch / f"{phase}-{begin}.safetensors", fingerprint, begin)
    state.resume(distributed.run_on_main(lambda: recorder.last_step(phase)) + LOG_STEPS - 1)
    recorder.rewind(phase, state.step, last_recorded, first=state.step == begin)
    finished = over = state.step >= end or state.misses >= config.patience
    order: list[np.ndarray] = []

    def validate_weights(bar: tqdm) -> None:
        scores = distributed.run_on_main(validate)
        state.update_best(scores["score"] if "score" in scores else -scores["loss"])
        if scores.get("classes") == 1:  # it has learnt nothing yet
            state.misses = 0
        _record_scores(scores, phase, state, per_epoch, bar, recorder)

    saved = time.monotonic()
    with (
        progress.bar(phase, end * rows_per_step, state.step * rows_per_step) as bar,
        sparse_embeddings(model, device),
        signals.held(),
    ):
        if state.step == begin and not over and config.validations and validate_start:
            validate_weights(bar)
            state.misses = 0  # a start that has no score yet is no miss
        while not over:
            epoch, number = divmod(state.step, per_epoch)
            if number == 0 or not order:
                order = shuffled_batches(rows.lengths, config.batch_size, seed, epoch, config.batch_tokens)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(state.step, total, config)
            torch.manual_seed(seed * 1_000_003 + state.step + RANK_SEED_OFFSET * RANK)
            share, weight = distributed.shard_batch(order[number])
            value = _step(model, loss, rows.batch(share).to(device), weight, optimizer, config, device)
            state.step += 1
            bar.update(rows_per_step)
            if state.step % LOG_STEPS == 0 or state.step == end:
                mean = distributed.all_reduce_mean(value)
                _record_loss(mean, phase, state.step, total, optimizer, bar, recorder, len(rows.ids) / len(rows))
            if (state.step - begin) % validation_steps == 0 or (state.step == end and config.validations):
                validate_weights(bar)
            # what is over is saved below, its best once told
            over = state.step >= end or state.misses >= config.patience
            due = time.monotonic() - saved >= checkpoint_seconds
            stopped, due = (False, False) if over else distributed.any_process(device, signals.received(), due)
            if stopped or due:
                state.save()
                saved = time.monotonic()
            if stopped:
                signals.stop()
    if not finished:
        recorder.rewind(phase, state.step, last_recorded)
        if state.best_weights:
            recorder.log(phase, state.step, {"best": state.best, "best_step": state.best_step, "budget": end})
        state.save(optimizer_state=end < total)  # a later range may go on with it
    signals.raise_received()
    if state.best_weights:
        state.restore_best()
    return TrainingResult(state.best, state.best_step, state.step, moments_of(model, optimizer))


def validate(model: nn.Module, task: Task, rows: TokenizedDataset, device: torch.device) -> dict[str, float]:
    """The task's scores on `rows`, and of a classifier how many classes it predicts: one for every row logs a line."""
    with autocast(device):
        logits = checkpoints.predict_logits(model, rows, VALIDATION_BATCH, device)
    scores = scores_on(task, logits, rows)
    if task.labels:
        scores["classes"] = len(np.unique(predictions(task, logits), axis=0))
        if scores["classes"] == 1:
            progress.log(
                f"{task.name}: every validation row gets the same class; if it stays so, lower the learning rate"
            )
    return scores


def mean_loss(model: nn.Module, loss: Loss, rows: TokenizedDataset, device: torch.device) -> float:
    """The mean of a loss over rows, in evaluation mode."""
    order, training, total = np.argsort(rows.lengths, kind="stable"), model.training, 0.0
    model.eval()
    for start in range(0, len(order), VALIDATION_BATCH):
        part = order[start : start + VALIDATION_BATCH]
        with torch.inference_mode(), autocast(device):
            total += float(loss(rows.batch(part).to(device))) * len(part)
    model.train(training)
    return total / len(order)


def new_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient; vectors (biases, norms) have no weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return RowAdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)


def total_steps(rows: TokenizedDataset | Sized, config: TrainingConfig) -> int:
    """The optimiser steps of a phase, unless it stops early: those of its epochs, not under its floor nor over its budget."""
    if not config.epochs:
        return 0
    steps = max(round(batches_per_epoch(rows, config) * config.epochs), config.min_steps)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def batches_per_epoch(rows: TokenizedDataset | Sized, config: TrainingConfig) -> int:
    """The batches of an epoch: as many in each."""
    if config.batch_tokens is None:
        return math.ceil(len(rows) / config.batch_size)
    assert isinstance(rows, TokenizedDataset)
    return len(token_cuts(rows.lengths, config.batch_tokens)) + 1


def of_steps(config: TrainingConfig, steps: int) -> TrainingConfig:
    """A phase of so many steps on any rows; none: no epochs."""
    return replace(config, epochs=float(bool(steps)), min_steps=steps, max_steps=max(1, steps))


def _schedule(step: int, total: int, config: TrainingConfig) -> float:
    """The learning rate at a step as a fraction of `config.learning_rate`."""
    rising = max(1, round(total * config.warmup))
    if step < rising:
        return (step + 1) / rising
    left = (total - step) / max(1, total - rising)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "none": 1.0}[config.decay]


def _step(
    model: nn.Module, loss: Loss, batch: Batch, weight: float, optimizer: torch.optim.AdamW, config: TrainingConfig,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """One optimiser step; the loss, times the weight of this process's share of the batch."""
    with autocast(device), fast_dropout(device, config.dropout):
        value = loss(batch) * weight
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    distributed.average_gradients(trained)
    clip_gradients(trained, config.gradient_clip)
    optimizer.step()
    return value.detach()


def _record_loss(
    value: Tensor, phase: str, step: int, total: int, optimizer: torch.optim.AdamW, bar: tqdm, recorder: RunRecorder,
    tokens_per_row: float,
) -> None:  # fmt: skip
    loss, rate = float(value), optimizer.param_groups[0]["lr"]
    if not math.isfinite(loss):
        raise TrainingError(
            f"{phase}: the loss became {loss} at step {step} of {total}, learning rate {rate:.2e}; lower `learning_rate` "
            "or raise `warmup` of this phase in params.yaml"
        )
    values = {"loss": loss, "learning_rate": rate}
    shown = {"loss": f"{loss:.4f}"}
    if speed := bar.format_dict["rate"]:
        values |= {"rows_per_second": speed, "tokens_per_second": speed * tokens_per_row}
        shown["tokens/s"] = f"{values['tokens_per_second']:.0f}"
    recorder.log(phase, step, values)
    bar.set_postfix(shown)


def _record_scores(
    scores: dict[str, float], phase: str, state: TrainingState, per_epoch: int, bar: tqdm, recorder: RunRecorder
) -> None:
    values = {f"validation_{name}": score for name, score in scores.items()}
    recorder.log(phase, state.step, {"epoch": state.step / per_epoch, **values})
    bar.set_postfix({name: f"{value:.4f}" for name, value in (scores | {"best": state.best}).items()})
