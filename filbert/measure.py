"""What a model costs: parameters, bytes, multiply-adds, latency. Two models are timed side by side, in turn."""

import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from filbert.bert import FilbertConfig
from filbert.bilstm import BiLstmConfig
from filbert.data import Batch, Encoded
from filbert.reference_bert import REFERENCE, ReferenceForSequenceClassification
from filbert.store import FOLDER as STORE
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


def prunable(model: nn.Module) -> int:
    """How many of them lie where ROSITA cuts: in the encoder's layers and the word embedding with its projection; positions,
    segments, pooler and classifier are left out."""
    return sum(p.numel() for name, p in model.named_parameters() if "encoder.layer." in name or ".word_" in name)


def shape(config: Any) -> dict[str, Any]:
    """Layers and width, and of a student that was cut in width, heads and neurons of each layer and the embedding's rank; of a
    BiLSTM its embedding, the units of each direction and the dense layer's width."""
    if isinstance(config, BiLstmConfig):
        return {"embedding": config.embedding_size, "lstm": config.lstm_size, "hidden": config.hidden_size}
    found = {"layers": config.num_hidden_layers, "hidden": config.hidden_size}
    if isinstance(config, FilbertConfig) and not config.is_even:
        found |= {"heads": config.layer_heads, "intermediate": config.layer_intermediate, "rank": config.embedding_size}
    return found


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
    return rows.batch(_spread(rows, size))


def _spread(rows: Encoded, size: int) -> np.ndarray:
    order = np.argsort(rows.lengths, kind="stable")
    return order[((np.arange(size) + 0.5) / size * len(order)).astype(int)]


@dataclass(frozen=True)
class Cost:
    """What a model costs beside its teacher: the figures, and all times they come from."""

    figures: dict[str, Any]
    latency: dict[str, dict[str, dict[str, float]]]  # batch size -> arm -> minimum, median, p95
    tokens: int  # of the row that is the batch of 1


def cost(
    model: nn.Module, folder: Path, teacher: nn.Module, rows: Encoded, of_teacher: Encoded, config: LatencyConfig
) -> Cost:
    """Measure a model saved in `folder` on `rows`, beside its teacher on the same rows, cut into the teacher's pieces
    (`of_teacher`). A model that finds references itself is also timed with its reference at hand, so that what finding and
    reading it takes can be told."""
    one, timed = typical(rows, 1), {}
    for size in config.batch_sizes:
        chosen = _spread(rows, size)
        batch = rows.batch(chosen)
        arms = {"teacher": (teacher, of_teacher.batch(chosen)), "student": (model, batch)}
        if isinstance(model, ReferenceForSequenceClassification):
            found = dict(zip(REFERENCE, model.references(batch.ids, batch.mask), strict=True))
            arms["reference at hand"] = (model, replace(batch, teacher=found))
        timed[str(size)] = latency(arms, config)
    count = parameters(model)
    figures = {
        "parameters": count,
        "bytes": weight_bytes(folder),
        "multiply_adds": multiply_adds(model, one),
        "smaller": parameters(teacher) / count,
        "faster": {f"batch_{n}": t["teacher"]["median"] / t["student"]["median"] for n, t in timed.items()},
        "milliseconds": {f"batch_{n}": t["student"]["median"] for n, t in timed.items()},
    }
    if prunable(model):
        figures["smaller_prunable"] = prunable(teacher) / prunable(model)
    if (folder / STORE).exists():
        figures["store_bytes"] = sum(file.stat().st_size for file in (folder / STORE).rglob("*") if file.is_file())
    return Cost(figures, timed, int(one.mask.sum()))


def latency(arms: Mapping[str, tuple[nn.Module, Batch]], config: LatencyConfig) -> dict[str, dict[str, float]]:
    """Milliseconds of a forward pass by arm: minimum, median and 95th percentile of interleaved rounds."""
    spent: dict[str, list[float]] = {name: [] for name in arms}
    with _threads(config.threads), torch.inference_mode():
        for turn in range(config.warmup + config.rounds):
            for name, (model, batch) in arms.items():
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
