"""Cutting an encoder: the importance of its heads and neurons, and smaller matrices in place of larger ones.

The operators are ROSITA's (Liu, Lin, Yuan 2021, AAAI, arXiv 2103.11367; official code KD/pruning.py): the score of a weight w
is |w · mean |g||, g its gradient on a batch, gathered while training goes on; of a head the sum over its columns of the
attention's output projection, of a neuron over its row and its column. The embedding is factorised by SVD and later
truncated; layers go from the top. Nothing is masked: what is cut is gone. Ours: widths that differ by layer, from a budget.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from filbert import FilbertError
from filbert.bert import FilbertForSequenceClassification
from filbert.data import Batch
from filbert.measure import multiply_adds, parameters
from filbert.students import Student

OUTPUT, UP, DOWN = "attention.output.dense.weight", "intermediate.dense.weight", "output.dense.weight"


class PruningError(FilbertError):
    """A model cannot be cut like this."""


@dataclass(frozen=True)
class Scores:
    """The importance of what one layer has: of its heads [H] and its neurons [F]."""

    heads: Tensor
    neurons: Tensor


@dataclass(frozen=True)
class Kept:
    """What is left of one layer: the numbers of its heads and its neurons, in rising order."""

    heads: Tensor
    neurons: Tensor


class Importance(nn.Module):
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

    def __enter__(self) -> "Importance":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _adder(self, name: str) -> Callable[[Tensor], None]:
        def add(weight: Tensor) -> None:
            if weight.grad is not None:
                self.get_buffer(name).add_(weight.grad.abs())

        return add

    def scores(self) -> list[Scores]:
        """The importance of every head and neuron, layer by layer, at the present weights."""
        return [self._of(number, layer) for number, layer in enumerate(self.model[0].bert.encoder.layer)]

    def _of(self, number: int, layer: nn.Module) -> Scores:
        output, up, down = (
            (layer.get_parameter(part).detach() * self.get_buffer(_buffer(number, part))).abs().cpu()
            for part in (OUTPUT, UP, DOWN)
        )
        size = self.model[0].config.head_size
        return Scores(output.sum(0).unflatten(0, (-1, size)).sum(1), up.sum(1) + down.sum(0))


def strongest(scores: Sequence[Scores], heads: int, neurons: int) -> list[Kept]:
    """The most important heads and neurons, as many in every layer."""
    return [Kept(_top(layer.heads, heads), _top(layer.neurons, neurons)) for layer in scores]


def within(scores: Sequence[Scores], head_cost: float, neuron_cost: float, budget: float) -> list[Kept]:
    """The heads and neurons of most importance by cost, over all layers, that cost no more than `budget` together; every
    layer keeps one of each.

    Raises:
        PruningError: one of each costs more.
    """
    units = [
        (float(score) / cost, cost, layer, kind, number)
        for layer, found in enumerate(scores)
        for kind, cost, values in (("heads", head_cost, found.heads), ("neurons", neuron_cost, found.neurons))
        for number, score in enumerate(values.tolist())
    ]
    first = [
        max(u for u in units if u[2:4] == (layer, kind))
        for layer in range(len(scores))
        for kind in ("heads", "neurons")
    ]
    left = budget - sum(unit[1] for unit in first)
    if left < 0:
        raise PruningError(
            f"one head and one neuron in each of {len(scores)} layers cost {budget - left:.0f}, {-left:.0f} more than the "
            "budget leaves for them; raise it, or lower `layers` or `rank`"
        )
    taken = set(first)
    for unit in sorted(set(units) - taken, reverse=True):
        if unit[1] <= left:
            taken.add(unit)
            left -= unit[1]
    return [
        Kept(*(torch.tensor(sorted(u[4] for u in taken if u[2:4] == (layer, kind))) for kind in ("heads", "neurons")))
        for layer in range(len(scores))
    ]


def everything(model: FilbertForSequenceClassification, layers: int) -> list[Kept]:
    """All that the lowest `layers` layers have."""
    shapes = zip(model.config.layer_heads[:layers], model.config.layer_intermediate[:layers], strict=True)
    return [Kept(torch.arange(heads), torch.arange(neurons)) for heads, neurons in shapes]


def cut(model: Student, kept: Sequence[Kept], rank: int = 0) -> Student:
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
                weights[name] = _selected(value, part, kept[int(number)], config.head_size)
        else:
            weights.setdefault(name, value)
    smaller = type(model)(type(config)(**fields))  # type: ignore[arg-type]
    smaller.load_state_dict(weights)
    return smaller.to(value.device)


def _selected(value: Tensor, part: str, kept: Kept, size: int) -> Tensor:
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
        u, s, v = torch.linalg.svd(table.float(), full_matrices=False)
        table, back = u * s, v.T
    return {
        f"{where}embeddings.weight": table[:, :rank].contiguous(),
        f"{where}projection.weight": back[:, :rank].contiguous(),
    }


def budgeted(
    model: FilbertForSequenceClassification, scores: Sequence[Scores], count: Callable[[nn.Module], int], budget: float
) -> list[Kept]:
    """The widths, layer by layer, with which `count` (of parameters, or multiply-adds) is at most `budget`.

    What a head and a neuron cost is found by counting models with one less.
    """
    whole = everything(model, model.config.num_hidden_layers)
    full, widest = count(cut(model, whole)), max(range(len(whole)), key=lambda i: len(whole[i].heads))
    costs = []
    for heads, neurons in ((1, 0), (0, 1)):
        layer = whole[widest]
        less = Kept(
            layer.heads[: max(1, len(layer.heads) - heads)], layer.neurons[: max(1, len(layer.neurons) - neurons)]
        )
        costs.append(max(1, full - count(cut(model, [*whole[:widest], less, *whole[widest + 1 :]]))))
    taken = sum(len(layer.heads) * costs[0] + len(layer.neurons) * costs[1] for layer in whole)
    return within(scores, costs[0], costs[1], budget - (full - taken))


def counter(kind: str, batch: Batch) -> Callable[[nn.Module], int]:
    """What counts against a budget: `parameters`, or the `multiply_adds` of one forward pass on `batch`."""
    return parameters if kind == "parameters" else lambda model: multiply_adds(model, batch)


def between(start: int, end: int, event: int, events: int) -> int:
    """Where a width stands after an event of several that lead from `start` to `end` in equal steps."""
    return round(start + (end - start) * event / events)


def _top(values: Tensor, count: int) -> Tensor:
    if not 0 < count <= len(values):
        raise PruningError(f"expected to keep 1 to {len(values)}, got {count}")
    return values.topk(count).indices.sort().values


def _buffer(number: int, part: str) -> str:
    return f"{number}_{part.replace('.', '_')}"
