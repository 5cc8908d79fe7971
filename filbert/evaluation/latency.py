"""Latency: milliseconds of a forward pass or from text to answer, of all that are compared: interleaved, in one process."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from filbert import FilbertError
from filbert.data.batches import Batch, TokenizedDataset
from filbert.models.checkpoints import forward_batch
from filbert.models.reference_bert import REFERENCE, ReferenceForSequenceClassification
from filbert.models.size import spread, spread_rows
from filbert.runtime.config import NonNegativeInt, PositiveInt

Times = dict[str, float]  # minimum, median, p95 in milliseconds


@dataclass(frozen=True)
class LatencyConfig:
    """The protocol: models in turn, `rounds` times after `warmup` rounds, on CPU, in float32, with `threads` threads; half as often
    in batches, which take longer and scatter less."""

    batch_sizes: tuple[PositiveInt, ...]  # 1 and 32, which tables show, among them
    warmup: NonNegativeInt
    rounds: PositiveInt
    threads: PositiveInt

    def __post_init__(self) -> None:
        if not {1, 32} <= {*self.batch_sizes}:
            raise FilbertError(f"latency.batch_sizes: expected 1 and 32 among them, got {list(self.batch_sizes)}")

    def time(self, calls: Mapping[str, Callable[[], object]], size: int) -> dict[str, Times]:
        """The times of calls on batches of this size."""
        share = 1 if size == 1 else 2
        return time_in_turn(calls, -(-self.warmup // share), -(-self.rounds // share))


def measure_latencies(
    models: Mapping[str, nn.Module], rows: Mapping[str, TokenizedDataset], config: LatencyConfig
) -> dict[str, dict[str, Times]]:
    """By batch size and model the times of a forward pass. A model that finds references itself is timed again with them given.

    Args:
        rows: by model the same rows in its own tokens; a batch of 1 is the row of median length, a larger one spreads evenly over
            the order by length of the first model's rows.
    """
    order = next(iter(rows.values()))
    found = {}
    for size in config.batch_sizes:
        chosen = spread_rows(order, size)
        arms = dict(_arms(models, {name: rows[name].batch(chosen) for name in models}))
        found[str(size)] = measure_latency(arms, config, size)
    return found


def _arms(
    models: Mapping[str, nn.Module], batches: Mapping[str, Batch]
) -> Iterator[tuple[str, tuple[nn.Module, Batch]]]:
    for name, model in models.items():
        batch = batches[name]
        yield name, (model, batch)
        if isinstance(model, ReferenceForSequenceClassification):
            references = dict(zip(REFERENCE, model.references(batch.ids, batch.mask), strict=True))
            yield f"{name}: reference at hand", (model, replace(batch, targets=references))


def measure_latency(
    arms: Mapping[str, tuple[nn.Module, Batch]], config: LatencyConfig, size: int = 1
) -> dict[str, Times]:
    """Milliseconds of a forward pass by arm, all on batches of one size."""
    calls = {name: partial(forward_batch, model.eval(), batch) for name, (model, batch) in arms.items()}
    with _threads(config.threads), torch.inference_mode():
        return config.time(calls, size)


def time_texts(
    arms: Mapping[str, Callable[[list[Any]], object]], texts: Sequence[Any], config: LatencyConfig
) -> dict[str, dict[str, Times]]:
    """By batch size and arm the times from text to answer. A text is a string, or a tuple of those of a row.

    A batch of 1 is the text of median length, a larger one spreads evenly over the order by length.
    """
    order = sorted(texts, key=lambda text: len("".join(text)))
    found = {}
    for size in config.batch_sizes:
        chosen = [order[at] for at in spread(len(order), size)]
        calls = {name: partial(answer, chosen) for name, answer in arms.items()}
        found[str(size)] = config.time(calls, size)
    return found


def time_in_turn(arms: Mapping[str, Callable[[], object]], warmup: int, rounds: int) -> dict[str, Times]:
    """Milliseconds of each arm: minimum, median and 95th percentile over rounds in which each runs once."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(warmup + rounds):
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            if number >= warmup:
                times[name].append(1000 * (time.perf_counter() - start))
    return {
        name: {"minimum": min(found), "median": float(np.median(found)), "p95": float(np.percentile(found, 95))}
        for name, found in times.items()
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
