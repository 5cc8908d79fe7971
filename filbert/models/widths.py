"""Widths from a budget: heads and neurons of all layers compete, by importance for their cost. Ours; ROSITA's widths are even."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from filbert.data.batches import Batch, TokenizedDataset
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import Student
from filbert.models.pruning import KeptUnits, PruningError, UnitScores, interpolate, keep_all, prune, top_k
from filbert.models.size import count_parameters, multiply_adds, representative_batch

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


@dataclass(frozen=True)
class TargetConfig:
    """The shape to prune to: the same heads and neurons in every layer, or a budget that importance divides among layers."""

    layers: int | None  # none: as many as there are
    rank: int  # of the factorised word embedding; 0: it is not factorised
    heads: int | None  # of each layer
    intermediate: int | None  # neurons of each layer
    parameters: int | None  # at most so many
    multiply_adds: int | None  # at most so many, on the training row of median length

    def __post_init__(self) -> None:
        given = [name for name in ("heads", "intermediate", "parameters", "multiply_adds") if getattr(self, name)]
        if given not in (["heads", "intermediate"], ["parameters"], ["multiply_adds"]):
            raise PruningError(f"a target needs heads and intermediate, or parameters, or multiply_adds; got {given}")


def check_target(target: TargetConfig, start: FilbertForSequenceClassification) -> None:
    """Refuse, before anything is trained, a target that a model cannot be pruned to.

    Raises:
        PruningError: the target has more of something.
    """
    shape: Any = start.config
    available = {
        "layers": shape.num_hidden_layers,
        "rank": shape.embedding_size or shape.hidden_size,
        "heads": max(shape.layer_heads),
        "intermediate": max(shape.layer_intermediate),
    }
    for name, there in available.items():
        if (getattr(target, name) or 0) > there:
            raise PruningError(
                f"target.{name}: expected at most {there}, what the start has; got {getattr(target, name)}"
            )


def prune_towards(
    target: TargetConfig, student: Student, scores: Sequence[UnitScores], event: int, events: int, start: Student,
    rows: TokenizedDataset, device: torch.device,
) -> Student:  # fmt: skip
    """The student after one of several pruning events that lead from the widths of `start` to those of the target."""
    shape, rank = start.config, 0
    if target.rank:
        rank = interpolate(shape.embedding_size or shape.hidden_size, target.rank, event, events)
    if target.heads and target.intermediate:
        heads = interpolate(max(shape.layer_heads), target.heads, event, events)
        neurons = interpolate(max(shape.layer_intermediate), target.intermediate, event, events)
        return prune(student, top_k(scores, heads, neurons), rank)
    kind = "parameters" if target.parameters else "multiply_adds"
    count = cost_counter(kind, representative_batch(rows, 1).to(device))
    budget = interpolate(count(start), getattr(target, kind), event, events)
    student = prune(student, keep_all(student), rank)  # what is left of the budget depends on the rank
    return prune(student, allocate_budget(student, scores, count, budget))
