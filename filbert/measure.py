"""What a model costs: parameters, bytes, multiply-adds, latency. Two models are timed side by side, in turn."""

import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from filbert.data import Batch, Encoded
from filbert.students import ask


@dataclass(frozen=True)
class LatencyConfig:
    """The protocol: every model in turn, `rounds` times after `warmup` rounds, on CPU, float32, `threads` threads."""

    batch_sizes: tuple[int, ...]
    warmup: int
    rounds: int
    threads: int


def parameters(model: nn.Module) -> int:
    """How many numbers the model holds; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(folder: Path) -> int:
    """The size of the weight files as saved."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def multiply_adds(model: nn.Module, batch: Batch) -> int:
    """Multiply-adds of all matrix products of one forward pass, counted by torch while it runs."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        ask(model.eval(), batch)
    return counter.get_total_flops() // 2


def typical(rows: Encoded, size: int) -> Batch:
    """A batch of `size` rows spread evenly over the lengths that occur; for 1, the row of median length."""
    order = np.argsort(rows.lengths, kind="stable")
    return rows.batch(order[((np.arange(size) + 0.5) / size * len(order)).astype(int)])


def latency(models: Mapping[str, nn.Module], batch: Batch, config: LatencyConfig) -> dict[str, dict[str, float]]:
    """Milliseconds of a forward pass by model: minimum, median and 95th percentile of interleaved rounds."""
    spent: dict[str, list[float]] = {name: [] for name in models}
    with _threads(config.threads), torch.inference_mode():
        for turn in range(config.warmup + config.rounds):
            for name, model in models.items():
                start = time.perf_counter()
                ask(model.eval(), batch)
                if turn >= config.warmup:
                    spent[name].append(1000 * (time.perf_counter() - start))
    return {
        name: {"minimum": min(times), "median": float(np.median(times)), "p95": float(np.percentile(times, 95))}
        for name, times in spent.items()
    }


@contextmanager
def _threads(count: int):  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
