"""Structured pruning of an encoder: importance scores of heads and neurons, and smaller matrices in place of larger ones.

The operators are ROSITA's (Liu, Lin, Yuan 2021, AAAI, arXiv 2103.11367; official code KD/pruning.py): the score of a weight w is
|w · mean |g||, g its gradient on a batch, accumulated during training; of a head the sum over its columns of the attention's output
projection, of a neuron the sum over its row and its column. The embedding is factorised by SVD and later truncated; layers are
removed from the top. Nothing is masked: pruned weights are removed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from filbert import FilbertError
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import LAYER, Student
from filbert.models.svd import low_rank_factors
from filbert.runtime import distributed

WORDS = "bert.embeddings.word_"
OUTPUT, UP, DOWN = "attention.output.dense.weight", "intermediate.dense.weight", "output.dense.weight"


class PruningError(FilbertError):
    """A model cannot be pruned to this shape."""


@dataclass(frozen=True)
class UnitScores:
    """The importance of the heads [H] and neurons [F] of one layer."""

    heads: Tensor
    neurons: Tensor


@dataclass(frozen=True)
class KeptUnits:
    """The heads and neurons of one layer that are kept, as numbers in ascending order."""

    heads: Tensor
    neurons: Tensor


class ImportanceRecorder(nn.Module):
    """Accumulates Σ |g| of a model's weights over backward passes, in buffers; the mean differs by a constant factor."""

    def __init__(self, model: FilbertForSequenceClassification, sums: Mapping[str, Tensor] | None = None):
        """Begin at `sums`, by the names of the weights; none: at zero."""
        super().__init__()
        self.model = (model,)  # in a tuple it is no submodule: its weights are not this module's
        self.hooks = []
        for number, layer in enumerate(model.bert.encoder.layer):
            for part in (OUTPUT, UP, DOWN):
                weight = layer.get_parameter(part)
                name = _buffer_name(number, part)
                begin = (sums or {}).get(f"{LAYER}{number}.{part}")
                self.register_buffer(name, torch.zeros_like(weight) if begin is None else begin.clone())
                self.hooks.append(weight.register_post_accumulate_grad_hook(self._accumulate(name)))

    def __enter__(self) -> "ImportanceRecorder":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _accumulate(self, name: str) -> Callable[[Tensor], None]:
        def add(weight: Tensor) -> None:
            if weight.grad is not None:
                self.get_buffer(name).add_(weight.grad.abs())

        return add

    def sums(self) -> dict[str, Tensor]:
        """The sums so far, by the names of the weights."""
        return {
            f"{LAYER}{number}.{part}": self.get_buffer(_buffer_name(number, part))
            for number in range(len(self.model[0].bert.encoder.layer))
            for part in (OUTPUT, UP, DOWN)
        }

    def scores(self) -> list[UnitScores]:
        """The importance of every head and neuron, layer by layer, at the present weights."""
        return [self._layer_scores(number, layer) for number, layer in enumerate(self.model[0].bert.encoder.layer)]

    def _layer_scores(self, number: int, layer: nn.Module) -> UnitScores:
        output, up, down = (
            (
                layer.get_parameter(part).detach()
                * distributed.all_reduce_mean(self.get_buffer(_buffer_name(number, part)))
            )
            .abs()
            .cpu()
            for part in (OUTPUT, UP, DOWN)
        )
        size = self.model[0].config.head_size
        return UnitScores(output.sum(0).unflatten(0, (-1, size)).sum(1), up.sum(1) + down.sum(0))


def top_k(scores: Sequence[UnitScores], heads: int, neurons: int) -> list[KeptUnits]:
    """The most important heads and neurons, the same numbers in every layer; all where a layer has fewer."""
    return [KeptUnits(_top_numbers(layer.heads, heads), _top_numbers(layer.neurons, neurons)) for layer in scores]


def keep_all(model: FilbertForSequenceClassification, layers: int | None = None) -> list[KeptUnits]:
    """All heads and neurons of the lowest `layers` layers, or of all layers."""
    shapes = zip(model.config.layer_heads[:layers], model.config.layer_intermediate[:layers], strict=True)
    return [KeptUnits(torch.arange(heads), torch.arange(neurons)) for heads, neurons in shapes]


def prune(model: Student, kept: Sequence[KeptUnits], rank: int = 0) -> Student:
    """A new model with the kept heads and neurons: layers beyond `kept` are removed, the word embedding is factorised to `rank`
    (0: it is unchanged).

    Raises:
        PruningError: more layers or a higher rank than the model has, or no layer.
    """
    config = model.config
    if not 0 < len(kept) <= config.num_hidden_layers or not 0 <= rank <= (config.embedding_size or config.hidden_size):
        raise PruningError(
            f"expected 1 to {config.num_hidden_layers} layers and a rank up to {config.embedding_size or config.hidden_size}, got "
            f"{len(kept)} and {rank}"
        )
    fields = config.to_dict() | {
        "num_hidden_layers": len(kept),
        "layer_heads": [len(layer.heads) for layer in kept],
        "layer_intermediate": [len(layer.neurons) for layer in kept],
        "embedding_size": rank or config.embedding_size,
    }
    smaller = type(model)(type(config)(**fields))  # type: ignore[arg-type]
    smaller.load_state_dict(
        slice_weights(model.state_dict(), kept, config.head_size) | _factorised_embedding(model, rank)
    )
    nn.Module.to(smaller, next(model.parameters()).device)
    return smaller


def slice_weights(weights: Mapping[str, Tensor], kept: Sequence[KeptUnits], size: int) -> dict[str, Tensor]:
    """Tensors by a model's names, with the kept layers, heads (of `size` columns) and neurons only."""
    sliced = {}
    for name, value in weights.items():
        number, part = name.removeprefix(LAYER).split(".", 1)
        if not name.startswith(LAYER):
            sliced[name] = value
        elif int(number) < len(kept):  # a scalar is an optimiser's count of steps
            sliced[name] = slice_parameter(value, part, kept[int(number)], size) if value.dim() else value
    return sliced


def slice_moments(
    moments: Mapping[str, Mapping[str, Tensor]], kept: Sequence[KeptUnits], size: int, rank: int
) -> dict[str, dict[str, Tensor]]:
    """An optimiser's state, by a model's names, for the model that `prune` makes; the state of an embedding that is only now
    factorised is left out."""
    sliced: dict[str, dict[str, Tensor]] = {}
    for key in {key: None for state in moments.values() for key in state}:
        tensors = {name: state[key] for name, state in moments.items()}
        for name, value in slice_weights(tensors, kept, size).items():
            sliced.setdefault(name, {})[key] = value
    factors = [f"{WORDS}embeddings.weight", f"{WORDS}projection.weight"]
    for name in factors if rank and factors[1] in sliced else ():
        sliced[name] = {
            key: value[:, :rank].contiguous() if value.dim() else value for key, value in sliced[name].items()
        }
    if rank and factors[1] not in sliced:
        sliced.pop(factors[0], None)
    return sliced


def slice_parameter(value: Tensor, part: str, kept: KeptUnits, size: int) -> Tensor:
    """One tensor of a layer with the kept units only, by number, not by mask: a weight that is exactly zero is kept."""
    columns = (kept.heads[:, None] * size + torch.arange(size)).flatten()
    attention = {"query": (0, columns), "key": (0, columns), "value": (0, columns), "gate": (0, kept.heads)}
    path = part.split(".")
    if part.startswith("attention.self.") and path[2] in attention:
        dimension, numbers = attention[path[2]]
    elif part == OUTPUT:
        dimension, numbers = 1, columns
    elif part.startswith("intermediate."):
        dimension, numbers = 0, kept.neurons
    elif part == DOWN:
        dimension, numbers = 1, kept.neurons
    else:
        return value
    return value.index_select(dimension, numbers.to(value.device))


def _factorised_embedding(model: FilbertForSequenceClassification, rank: int) -> dict[str, Tensor]:
    """The word embedding E = U S Vᵀ at rank `rank`: U S of the largest singular values and the projection V back to the width;
    an embedding that is factorised already is truncated without another decomposition."""
    if not rank:
        return {}
    weights = model.state_dict()
    table = weights[f"{WORDS}embeddings.weight"]
    if model.config.embedding_size:
        projection = weights[f"{WORDS}projection.weight"]  # [D, rank]
    else:
        table, projection = low_rank_factors(table, rank)
    return {
        f"{WORDS}embeddings.weight": table[:, :rank].contiguous(),
        f"{WORDS}projection.weight": projection[:, :rank].contiguous(),
    }


def interpolate(start: int, end: int, event: int, events: int) -> int:
    """A width after one of several pruning events that lead from `start` to `end` in equal steps."""
    return round(start + (end - start) * event / events)


def event_steps(rounds: int, total: int, proportion: float, gather: int, phase: str) -> list[int]:
    """0, and the step of each of `rounds` pruning events: the last at `proportion` of `total` steps, the first after `gather` (in a
    short phase two thirds of the way), or with 0 as many as lie between two.

    Raises:
        PruningError: there are fewer steps than events, or none after the last event.
    """
    last = proportion * total
    events = np.linspace(min(gather, last * 2 / 3) or last / rounds, last, rounds) if rounds else np.empty(0)
    ends = [0, *events.round().astype(int).tolist()]
    if any(end <= begin for begin, end in pairwise(ends)) or ends[-1] >= total:
        raise PruningError(
            f"{phase}: {rounds} pruning events do not fit in {proportion} of {total} steps, a step each and some after; "
            "raise `epochs` or change `proportion`"
        )
    return ends


def _top_numbers(values: Tensor, count: int) -> Tensor:
    return values.topk(min(count, len(values))).indices.sort().values


def _buffer_name(number: int, part: str) -> str:
    return f"{number}_{part.replace('.', '_')}"
