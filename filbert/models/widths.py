"""Widths from a budget: heads and neurons of all layers compete, by importance for their cost. Ours; ROSITA's widths are even."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from filbert.data.batches import Batch
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.pruning import KeptUnits, PruningError, UnitScores, keep_all, prune
from filbert.models.size import count_parameters, multiply_adds

KINDS = ("heads", "neurons")
HEAD = 4  # a head's score is of its output projection alone, a quarter of its weights; a neuron's is of all of them
Count = Callable[[nn.Module], int]
Unit = tuple[float, int, int, str, int]  # importance by cost, cost, layer, kind, number


def cost_counter(kind: str, batch: Batch) -> Count:
    """What counts against a budget: `parameters`, or the `multiply_adds` of one forward pass on `batch`."""
    return count_parameters if kind == "parameters" else lambda model: multiply_adds(model, batch)


def allocate_budget(
    model: FilbertForSequenceClassification, scores: Sequence[UnitScores], count: Count, budget: float
) -> list[KeptUnits]:
    """The most important heads and neurons for their cost with which `count` is at most `budget`; each layer keeps one of each.

    Raises:
        PruningError: one of each is more.
    """
    whole = keep_all(model)
    costs = _costs(model, whole, count)
    units: list[Unit] = []
    for layer, found in enumerate(scores):
        for kind, weight, values in (("heads", HEAD, found.heads), ("neurons", 1, found.neurons)):
            cost = costs[layer][kind]
            units += [
                (weight * score / cost, cost, layer, kind, number) for number, score in enumerate(values.tolist())
            ]
    first = {
        (layer, kind): max(u for u in units if u[2:4] == (layer, kind))
        for layer in range(len(scores))
        for kind in KINDS
    }
    left = budget - count(prune(model, [_kept(first.values(), layer) for layer in range(len(scores))]))
    if left < 0:
        raise PruningError(
            f"one head and one neuron in each of {len(scores)} layers are {-left:.0f} over the budget of {budget:.0f}; raise it, "
            "or lower `layers` or `rank` of the target"
        )
    taken = set(first.values())
    for unit in sorted(set(units) - taken, reverse=True):
        if unit[1] <= left:
            taken.add(unit)
            left -= unit[1]
    return [_kept(taken, layer) for layer in range(len(scores))]


def _costs(model: FilbertForSequenceClassification, whole: list[KeptUnits], count: Count) -> list[dict[str, int]]:
    """What one head and one neuron of each layer cost: by counting with one less, once for layers of one type."""
    full = count(model)
    found: dict[type, dict[str, int]] = {}
    kinds = [type(layer) for layer in model.bert.encoder.layer]
    for kind in set(kinds):
        of_kind = [number for number, other in enumerate(kinds) if other is kind]
        found[kind] = {}
        for name in KINDS:
            widest = max(of_kind, key=lambda number: len(getattr(whole[number], name)))
            layer, one = whole[widest], slice(None, -1)
            less = (
                KeptUnits(layer.heads[one], layer.neurons)
                if name == "heads"
                else KeptUnits(layer.heads, layer.neurons[one])
            )
            alone = len(getattr(layer, name)) == 1  # then it stays, whatever it costs
            found[kind][name] = (
                1 if alone else full - count(prune(model, [*whole[:widest], less, *whole[widest + 1 :]]))
            )
    return [found[kind] for kind in kinds]


def _kept(taken: Iterable[Unit], layer: int) -> KeptUnits:
    heads, neurons = (torch.tensor(sorted(u[4] for u in taken if u[2:4] == (layer, kind))) for kind in KINDS)
    return KeptUnits(heads, neurons)
