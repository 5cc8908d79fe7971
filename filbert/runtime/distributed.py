"""Data parallelism: `accelerate launch` starts several processes, each takes its share of a batch, gradients are averaged.

The main process alone writes. In a single process every function here does nothing.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from filbert.runtime.files import IS_MAIN_PROCESS, RANK

WORLD_SIZE = int(os.environ.get("WORLD_SIZE", "1"))
TIMEOUT = timedelta(hours=24)  # the others wait while the main process validates


def init_process() -> torch.device:
    """Join the process group; the device of this process."""
    from accelerate import PartialState

    return PartialState(timeout=TIMEOUT).device


def broadcast_weights(model: nn.Module) -> None:
    """Copy the main process's weights and buffers to every process."""
    if WORLD_SIZE > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def shard_batch(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """This process's rows of a batch [B], and the weight of its mean loss: weighted so, the mean over processes is that of
    the batch. Where rows are fewer than processes, the last ones take a row of weight 0."""
    share = rows[RANK::WORLD_SIZE]
    return (share, len(share) * WORLD_SIZE / len(rows)) if len(share) else (rows[:1], 0.0)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes; one that no process has stays None."""
    if WORLD_SIZE == 1:
        return
    has_gradient = torch.tensor(
        [p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device
    )
    dist.all_reduce(has_gradient, dist.ReduceOp.MAX)
    used = [p for p, used in zip(parameters, has_gradient.tolist(), strict=True) if used]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).ravel() for p in used])
    dist.all_reduce(flat)
    for parameter, mean in zip(used, (flat / WORLD_SIZE).split([p.numel() for p in used]), strict=True):
        parameter.grad = mean.view_as(parameter)


def average_buffers(model: nn.Module) -> None:
    """Replace each buffer of numbers by its mean over processes."""
    for buffer in model.buffers() if WORLD_SIZE > 1 else ():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= WORLD_SIZE


def any_process(device: torch.device, *flags: bool) -> tuple[bool, ...]:
    """For each flag whether any process has set it: all answer the same."""
    if WORLD_SIZE == 1:
        return flags
    found = torch.tensor(flags, dtype=torch.uint8, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return tuple(map(bool, found.tolist()))


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean over processes."""
    if WORLD_SIZE == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / WORLD_SIZE


def run_on_main(call: Callable[[], Any]) -> Any:
    """Run `call` in the main process alone; its result, in every process."""
    if WORLD_SIZE == 1:
        return call()
    result = [call() if IS_MAIN_PROCESS else None]
    dist.broadcast_object_list(result, 0)
    return result[0]
