"""What a model costs: parameters, bytes, multiply-adds, and latency, measured in turn with its teacher's."""

import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from filbert.data.batches import Batch, TokenizedDataset
from filbert.models.checkpoints import forward_batch
from filbert.models.reference_bert import REFERENCE, ReferenceForSequenceClassification
from filbert.models.reference_store import FOLDER as STORE
from filbert.models.size import (
    count_parameters,
    count_prunable,
    multiply_adds,
    representative_batch,
    spread_rows,
    weight_bytes,
)


@dataclass(frozen=True)
class LatencyConfig:
    """The protocol: models in turn, `rounds` times after `warmup` rounds, on CPU, in float32, with `threads` threads."""

    batch_sizes: tuple[int, ...]
    warmup: int
    rounds: int
    threads: int


@dataclass(frozen=True)
class Cost:
    """What a model costs: the figures, and the latencies that they come from."""

    figures: dict[str, Any]
    latency: dict[str, dict[str, dict[str, float]]]  # milliseconds by batch size and arm: minimum, median, p95
    tokens: int  # of the row in the batch of 1


def measure_cost(
    model: nn.Module,
    folder: Path,
    teacher: nn.Module,
    rows: TokenizedDataset,
    teacher_rows: TokenizedDataset,
    config: LatencyConfig,
) -> Cost:
    """Measure a model saved in `folder` on `rows`, and its teacher on `teacher_rows`, the same rows in the teacher's tokens. A
    model that reads references is also timed with its references given: the difference is the time to find and read them."""
    one, latency = representative_batch(rows, 1), {}
    for size in config.batch_sizes:
        chosen = spread_rows(rows, size)
        batch = rows.batch(chosen)
        arms = {"teacher": (teacher, teacher_rows.batch(chosen)), "student": (model, batch)}
        if isinstance(model, ReferenceForSequenceClassification):
            references = dict(zip(REFERENCE, model.references(batch.ids, batch.mask), strict=True))
            arms["reference at hand"] = (model, replace(batch, targets=references))
        latency[str(size)] = measure_latency(arms, config)
    count = count_parameters(model)
    figures = {
        "parameters": count,
        "bytes": weight_bytes(folder),
        "multiply_adds": multiply_adds(model, one),
        "smaller": count_parameters(teacher) / count,
        "faster": {f"batch_{n}": t["teacher"]["median"] / t["student"]["median"] for n, t in latency.items()},
        "milliseconds": {f"batch_{n}": t["student"]["median"] for n, t in latency.items()},
    }
    if count_prunable(model):
        figures["smaller_prunable"] = count_prunable(teacher) / count_prunable(model)
    if (folder / STORE).exists():
        figures["store_bytes"] = sum(file.stat().st_size for file in (folder / STORE).rglob("*") if file.is_file())
    return Cost(figures, latency, int(one.mask.sum()))


def measure_latency(arms: Mapping[str, tuple[nn.Module, Batch]], config: LatencyConfig) -> dict[str, dict[str, float]]:
    """Milliseconds of a forward pass by arm: minimum, median and 95th percentile over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    with _threads(config.threads), torch.inference_mode():
        for number in range(config.warmup + config.rounds):
            for name, (model, batch) in arms.items():
                start = time.perf_counter()
                forward_batch(model.eval(), batch)
                if number >= config.warmup:
                    times[name].append(1000 * (time.perf_counter() - start))
    return {
        name: {"minimum": min(found), "median": float(np.median(found)), "p95": float(np.percentile(found, 95))}
        for name, found in times.items()
    }


@contextmanager
def _threads(count: int):  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
