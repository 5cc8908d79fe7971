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

from filbert.files import FIRST, RANK

COUNT = int(os.environ.get("WORLD_SIZE", "1"))
PATIENCE = timedelta(hours=24)  # while the first process scores, the others wait


def join() -> torch.device:
    """Meet the other processes; this one's device."""
    from accelerate import PartialState

    return PartialState(timeout=PATIENCE).device


def same_start(model: nn.Module) -> None:
    """Give every process the first one's weights and buffers."""
    if COUNT > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def mine(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """This process's share of a batch, and what its mean loss weighs so that the mean over processes is that of the batch.

    Where rows are fewer than processes, the last ones take a row that weighs nothing.
    """
    share = rows[RANK::COUNT]
    return (share, len(share) * COUNT / len(rows)) if len(share) else (rows[:1], 0.0)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes; one that no process has stays away."""
    if COUNT == 1:
        return
    had = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(had, dist.ReduceOp.MAX)
    used = [p for p, any_has in zip(parameters, had.tolist(), strict=True) if any_has]
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).ravel() for p in used])
    dist.all_reduce(flat)
    for parameter, mean in zip(used, (flat / COUNT).split([p.numel() for p in used]), strict=True):
        parameter.grad = mean.view_as(parameter)


def mean(value: Tensor) -> Tensor:
    """The mean over processes."""
    if COUNT == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / COUNT


def of_first(call: Callable[[], Any]) -> Any:
    """What `call` gives in the first process, in every process."""
    if COUNT == 1:
        return call()
    said = [call() if FIRST else None]
    dist.broadcast_object_list(said, 0)
    return said[0]
