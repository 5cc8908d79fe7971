"""Several processes, one model: `accelerate launch` starts them, each takes its share of a batch, gradients are averaged.

The first process alone writes. In a single process nothing here does anything.
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
TIMEOUT = timedelta(hours=24)  # while the first process scores, the others wait


def init_process() -> torch.device:
    """Meet the other processes; this one's device."""
    from accelerate import PartialState

    return PartialState(timeout=TIMEOUT).device


def broadcast_weights(model: nn.Module) -> None:
    """Give every process the first one's weights and buffers."""
    if WORLD_SIZE > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def shard_batch(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """This process's share of a batch, and what its mean loss weighs so that the mean over processes is that of the batch.

    Where rows are fewer than processes, the last ones take a row that weighs nothing.
    """
    share = rows[RANK::WORLD_SIZE]
    return (share, len(share) * WORLD_SIZE / len(rows)) if len(share) else (rows[:1], 0.0)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes; one that no process has stays away."""
    if WORLD_SIZE == 1:
        return
    had = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(had, dist.ReduceOp.MAX)
    used = [p for p, any_has in zip(parameters, had.tolist(), strict=True) if any_has]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).ravel() for p in used])
    dist.all_reduce(flat)
    for parameter, mean in zip(used, (flat / WORLD_SIZE).split([p.numel() for p in used]), strict=True):
        parameter.grad = mean.view_as(parameter)


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean over processes."""
    if WORLD_SIZE == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / WORLD_SIZE


def run_on_main(call: Callable[[], Any]) -> Any:
    """What `call` gives in the first process, in every process."""
    if WORLD_SIZE == 1:
        return call()
    said = [call() if IS_MAIN_PROCESS else None]
    dist.broadcast_object_list(said, 0)
    return said[0]
