"""fit(): the one training loop. It resumes after a kill and then ends bit-identical to a run that was never stopped.

Every random draw of a step depends on the seed and the step's number alone, and the order of an epoch's batches on
the seed and the epoch's number, so that (weights, optimiser, step) is the full state. It is kept in the scratch
folder, which is no DVC output, and holds safetensors and JSON only.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from filbert import FilbertError
from filbert.data.batches import Batch, TokenizedDataset, shuffled_batches
from filbert.data.tasks import Task
from filbert.evaluation.metrics import predictions, scores_on
from filbert.models import checkpoints
from filbert.runtime import distributed, progress
from filbert.runtime.device import autocast
from filbert.runtime.files import IS_MAIN_PROCESS, RANK
from filbert.tracking.recording import RunRecorder
from filbert.training.checkpoint import TrainingState, training_fingerprint

CHECKPOINT_SECONDS = float(os.environ.get("FILBERT_CHECKPOINT_SECONDS", "60"))
LOG_STEPS = 10
VALIDATION_BATCH = 64
RANK_SEED_OFFSET = 1 << 40  # from one process's random draws to the next's


class TrainingError(FilbertError):
    """Training cannot go on."""


@dataclass(frozen=True)
class TrainingConfig:
    """One phase of training: AdamW, linear warm-up, then `decay`; of no epochs, nothing happens."""

    DEFAULTS: ClassVar[str] = "training"  # the section of params.yaml that completes each phase

    epochs: float  # the last one may be a part
    batch_size: int
    learning_rate: float
    warmup: float  # fraction of all steps
    decay: Literal["linear", "cosine", "none"]  # of the learning rate after the warm-up: to 0 at the end, or not at all
    weight_decay: float
    gradient_clip: float  # norm of the gradient
    validations: int  # how often the validation rows are scored, the last time at the end; 0: the last weights are kept
    patience: int  # stop after this many validations without a better score


@dataclass(frozen=True)
class TrainingResult:
    """How a phase ended; the model holds the weights of its best validation."""

    best: float
    best_step: int
    steps: int


def fit(
    model: nn.Module,
    loss: Callable[[Batch], Tensor],
    rows: TokenizedDataset,
    validate: Callable[[], dict[str, float]],
    config: TrainingConfig,
    *,
    phase: str,
    seed: int,
    device: torch.device,
    scratch: Path,
    recorder: RunRecorder,
    window: tuple[int, int] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> TrainingResult:
    """Train the parameters of `model` that require a gradient on `loss`; keep the weights with the best `score`.

    Args:
        loss: a batch on the device -> a scalar.
        validate: scores of the present weights on rows held out; `score` is what counts, or where there is none, a low `loss`.
        phase: the name under which this phase is recorded and resumed.
        window: only the steps from the first to before the second of all that `config` asks for, with their rows and
            learning rates: a model that is cut while it trains goes on with a new optimizer, not with the old rows.

    Raises:
        TrainingError: the loss is not finite.
    """
    per_epoch = math.ceil(len(rows) / config.batch_size)
    total = total_steps(rows, config)
    begin, end = window or (0, total)
    told = math.inf if end == total else end  # up to which step the history is this window's to write
    every = max(1, math.ceil((end - begin) / config.validations)) if config.validations else total + 1
    model.to(device).train()
    distributed.broadcast_weights(model)
    optimizer = new_optimizer(model, config)
    state = TrainingState(
        model,
        optimizer,
        scratch / f"{phase}-{begin}.safetensors",
        training_fingerprint(model, rows, (config, window), seed, recorder.provenance),
        begin,
    )
    state.resume()
    recorder.rewind(phase, state.step, told)
    finished = state.step >= end or state.misses >= config.patience
    order: list[np.ndarray] = []
    saved = time.monotonic()
    with progress.bar(phase, end * config.batch_size, state.step * config.batch_size) as bar:
        while state.step < end and state.misses < config.patience:
            epoch, at = divmod(state.step, per_epoch)
            if at == 0 or not order:
                order = shuffled_batches(rows.lengths, config.batch_size, seed, epoch)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(state.step, total, config)
            torch.manual_seed(seed * 1_000_003 + state.step + RANK_SEED_OFFSET * RANK)
            share, weight = distributed.shard_batch(order[at])
            value = _step(model, loss, rows.batch(share).to(device), weight, optimizer, config.gradient_clip, device)
            state.step += 1
            bar.update(config.batch_size)
            if state.step % LOG_STEPS == 0 or state.step == end:
                _record_loss(
                    distributed.all_reduce_mean(value),
                    phase,
                    state.step,
                    total,
                    optimizer,
                    bar,
                    recorder,
                    len(rows.ids) / len(rows),
                )
            if (state.step - begin) % every == 0 or (state.step == end and config.validations):
                scores = distributed.run_on_main(validate)
                state.judge(scores["score"] if "score" in scores else -scores["loss"])
                values = {f"validation_{name}": score for name, score in scores.items()}
                recorder.log(phase, state.step, {"epoch": state.step / per_epoch, **values})
                bar.set_postfix({name: f"{value:.4f}" for name, value in (scores | {"best": state.best}).items()})
            if IS_MAIN_PROCESS and time.monotonic() - saved >= checkpoint_seconds:
                state.save()
                saved = time.monotonic()
    if not finished:
        recorder.rewind(phase, state.step, told)
        if state.best_weights:
            recorder.log(phase, state.step, {"best": state.best, "best_step": state.best_step})
        if IS_MAIN_PROCESS:
            state.save(moments=False)
    if state.best_weights:
        state.restore_best()
    return TrainingResult(state.best, state.best_step, state.step)


def validate(model: nn.Module, task: Task, rows: TokenizedDataset, device: torch.device) -> dict[str, float]:
    """The task's scores on `rows`; says so when a classifier gives every row the same class."""
    with autocast(device):
        logits = checkpoints.predict_logits(model, rows, VALIDATION_BATCH, device)
    if task.labels and len(set(predictions(task, logits))) == 1:
        progress.log(f"{task.name}: every validation row gets the same class; if it stays so, lower the learning rate")
    return scores_on(task, logits, rows)


def mean_loss(model: nn.Module, loss: Callable[[Batch], Tensor], rows: TokenizedDataset, device: torch.device) -> float:
    """The mean of a loss over rows, in evaluation mode."""
    order, was, total = np.argsort(rows.lengths, kind="stable"), model.training, 0.0
    model.eval()
    for start in range(0, len(order), VALIDATION_BATCH):
        part = order[start : start + VALIDATION_BATCH]
        with torch.inference_mode(), autocast(device):
            total += float(loss(rows.batch(part).to(device))) * len(part)
    model.train(was)
    return total / len(order)


def new_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that require a gradient; vectors (biases, norms) do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, fused=True)


def total_steps(rows: TokenizedDataset, config: TrainingConfig) -> int:
    """How many optimiser steps a phase has."""
    return round(math.ceil(len(rows) / config.batch_size) * config.epochs)


def _schedule(step: int, total: int, config: TrainingConfig) -> float:
    rising = max(1, round(total * config.warmup))
    if step < rising:
        return (step + 1) / rising
    left = (total - step) / max(1, total - rising)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "none": 1.0}[config.decay]


def _step(
    model: nn.Module,
    loss: Callable[[Batch], Tensor],
    batch: Batch,
    weight: float,
    optimizer: torch.optim.AdamW,
    clip: float,
    device: torch.device,
) -> Tensor:
    with autocast(device):
        value = loss(batch) * weight
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    distributed.average_gradients(trained)
    nn.utils.clip_grad_norm_(trained, clip)
    optimizer.step()
    return value.detach()


def _record_loss(
    value: Tensor, phase: str, step: int, total: int, optimizer: torch.optim.AdamW, bar: tqdm, recorder: RunRecorder,
    tokens: float,
) -> None:  # fmt: skip
    loss, rate = float(value), optimizer.param_groups[0]["lr"]
    if not math.isfinite(loss):
        raise TrainingError(
            f"{phase}: the loss became {loss} at step {step} of {total}, learning rate {rate:.2e}; lower `learning_rate` "
            "or raise `warmup` of this phase in params.yaml"
        )
    values = {"loss": loss, "learning_rate": rate}
    shown = {"loss": f"{loss:.4f}"}
    if bar.format_dict["rate"]:
        values |= {"rows_per_second": bar.format_dict["rate"], "tokens_per_second": bar.format_dict["rate"] * tokens}
        shown["tokens/s"] = f"{values['tokens_per_second']:.0f}"
    recorder.log(phase, step, values)
    bar.set_postfix(shown)
