"""Cutting an encoder: the importance of its heads and neurons, and smaller matrices in place of larger ones.

The operators are ROSITA's (Liu, Lin, Yuan 2021, AAAI, arXiv 2103.11367; official code KD/pruning.py): the score of a weight w
is |w · mean |g||, g its gradient on a batch, gathered while training goes on; of a head the sum over its columns of the
attention's output projection, of a neuron over its row and its column. The embedding is factorised by SVD and later
truncated; layers go from the top. Nothing is masked: what is cut is gone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filbert import FilbertError
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import Student
from filbert.models.svd import low_rank_factors
from filbert.runtime import distributed

OUTPUT, UP, DOWN = "attention.output.dense.weight", "intermediate.dense.weight", "output.dense.weight"


class PruningError(FilbertError):
    """A model cannot be cut like this."""


@dataclass(frozen=True)
class UnitScores:
    """The importance of what one layer has: of its heads [H] and its neurons [F]."""

    heads: Tensor
    neurons: Tensor


@dataclass(frozen=True)
class KeptUnits:
    """What is left of one layer: the numbers of its heads and its neurons, in rising order."""

    heads: Tensor
    neurons: Tensor


class ImportanceRecorder(nn.Module):
    """Gathers Σ |g| of a model's weights at every backward pass, as buffers; the mean differs by a constant factor."""

    def __init__(self, model: FilbertForSequenceClassification):
        super().__init__()
        self.model = (model,)  # in a tuple it is no submodule: its weights are not this module's
        self.hooks = []
        for number, layer in enumerate(model.bert.encoder.layer):
            for part in (OUTPUT, UP, DOWN):
                weight = layer.get_parameter(part)
                name = _buffer(number, part)
                self.register_buffer(name, torch.zeros_like(weight))
                self.hooks.append(weight.register_post_accumulate_grad_hook(self._adder(name)))

    def __enter__(self) -> "ImportanceRecorder":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _adder(self, name: str) -> Callable[[Tensor], None]:
        def add(weight: Tensor) -> None:
            if weight.grad is not None:
                self.get_buffer(name).add_(weight.grad.abs())

        return add

    def scores(self) -> list[UnitScores]:
        """The importance of every head and neuron, layer by layer, at the present weights."""
        return [self._of(number, layer) for number, layer in enumerate(self.model[0].bert.encoder.layer)]

    def _of(self, number: int, layer: nn.Module) -> UnitScores:
        output, up, down = (
            (layer.get_parameter(part).detach() * distributed.all_reduce_mean(self.get_buffer(_buffer(number, part))))
            .abs()
            .cpu()
            for part in (OUTPUT, UP, DOWN)
        )
        size = self.model[0].config.head_size
        return UnitScores(output.sum(0).unflatten(0, (-1, size)).sum(1), up.sum(1) + down.sum(0))


def top_k(scores: Sequence[UnitScores], heads: int, neurons: int) -> list[KeptUnits]:
    """The most important heads and neurons, as many in every layer; all where a layer has no more."""
    return [KeptUnits(_top(layer.heads, heads), _top(layer.neurons, neurons)) for layer in scores]


def keep_all(model: FilbertForSequenceClassification, layers: int | None = None) -> list[KeptUnits]:
    """All that the lowest `layers` layers have, or all layers."""
    shapes = zip(model.config.layer_heads[:layers], model.config.layer_intermediate[:layers], strict=True)
    return [KeptUnits(torch.arange(heads), torch.arange(neurons)) for heads, neurons in shapes]


def prune(model: Student, kept: Sequence[KeptUnits], rank: int = 0) -> Student:
    """A model of what is kept: layers beyond `kept` go from the top, the word embedding is factorised to `rank` (0: stays).

    Raises:
        PruningError: it would not be smaller: a layer, a rank or a width it does not have.
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
    weights = dict(_embedding(model, rank))
    for name, value in model.state_dict().items():
        if name.startswith("bert.encoder.layer."):
            number, part = name.removeprefix("bert.encoder.layer.").split(".", 1)
            if int(number) < len(kept):
                weights[name] = slice_parameter(value, part, kept[int(number)], config.head_size)
        else:
            weights.setdefault(name, value)
    smaller = type(model)(type(config)(**fields))  # type: ignore[arg-type]
    smaller.load_state_dict(weights)
    return smaller.to(value.device)


def slice_parameter(value: Tensor, part: str, kept: KeptUnits, size: int) -> Tensor:
    """What is left of one tensor of a layer. By number, not by mask: a weight that is exactly zero stays."""
    columns = (kept.heads[:, None] * size + torch.arange(size)).flatten()
    names = {"query": (0, columns), "key": (0, columns), "value": (0, columns), "gate": (0, kept.heads)}
    path = part.split(".")
    if part.startswith("attention.self.") and path[2] in names:
        dimension, numbers = names[path[2]]
    elif part == OUTPUT:
        dimension, numbers = 1, columns
    elif part.startswith("intermediate."):
        dimension, numbers = 0, kept.neurons
    elif part == DOWN:
        dimension, numbers = 1, kept.neurons
    else:
        return value
    return value.index_select(dimension, numbers.to(value.device))


def _embedding(model: FilbertForSequenceClassification, rank: int) -> dict[str, Tensor]:
    """The word embedding E = U S Vᵀ of rank `rank`: U S of the strongest directions and the projection back to the width;
    once factorised, its columns are truncated without another decomposition."""
    if not rank:
        return {}
    where = "bert.embeddings.word_"
    weights = model.state_dict()
    table = weights[f"{where}embeddings.weight"]
    if model.config.embedding_size:
        back = weights[f"{where}projection.weight"]  # [D, rank]
    else:
        table, back = low_rank_factors(table, rank)
    return {
        f"{where}embeddings.weight": table[:, :rank].contiguous(),
        f"{where}projection.weight": back[:, :rank].contiguous(),
    }


def interpolate(start: int, end: int, event: int, events: int) -> int:
    """Where a width stands after an event of several that lead from `start` to `end` in equal steps."""
    return round(start + (end - start) * event / events)


def _top(values: Tensor, count: int) -> Tensor:
    return values.topk(min(count, len(values))).indices.sort().values


def _buffer(number: int, part: str) -> str:
    return f"{number}_{part.replace('.', '_')}"
