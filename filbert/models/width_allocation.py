"""The widths to prune to: even ones, as in ROSITA, or (ours) a budget that is given to the most important units of all layers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from filbert.data.batches import Batch, TokenizedDataset
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import Student
from filbert.models.pruning import KeptUnits, PruningError, UnitScores, interpolate, keep_all, prune, top_k
from filbert.models.size import count_parameters, multiply_adds, representative_batch
from filbert.runtime.config import NonNegativeInt, PositiveInt

KINDS = ("heads", "neurons")
HEAD_FACTOR = 4  # a head's score is that of a quarter of its weights, its output projection; a neuron's is of all
Count = Callable[[nn.Module], int]
Unit = tuple[float, int, int, str, int]  # importance per cost, cost, layer, kind, number


def cost_counter(kind: str, batch: Batch) -> Count:
    """The cost that a budget limits: `parameters`, or the `multiply_adds` of one forward pass on `batch`."""
    return count_parameters if kind == "parameters" else lambda model: multiply_adds(model, batch)


def allocate_budget(
    model: FilbertForSequenceClassification, scores: Sequence[UnitScores], count: Count, budget: float
) -> list[KeptUnits]:
    """The heads and neurons with the highest importance per cost for which `count` is at most `budget`; each layer keeps at least
    one of each.

    Raises:
        PruningError: one of each exceeds the budget.
    """
    costs = _unit_costs(model, keep_all(model), count)
    units = [
        (weight * score / costs[layer][kind], costs[layer][kind], layer, kind, number)
        for layer, found in enumerate(scores)
        for kind, weight, values in (("heads", HEAD_FACTOR, found.heads), ("neurons", 1, found.neurons))
        for number, score in enumerate(values.tolist())
    ]
    layers = range(len(scores))
    taken = {max(u for u in units if u[2:4] == (layer, kind)) for layer in layers for kind in KINDS}  # one of each
    left = budget - count(prune(model, [_kept(taken, layer) for layer in layers]))
    if left < 0:
        raise PruningError(
            f"one head and one neuron in each of {len(scores)} layers are {-left:.0f} over the budget of {budget:.0f}; raise it, "
            "or lower `layers` or `rank` of the target"
        )
    for unit in sorted(set(units) - taken, reverse=True):
        if unit[1] <= left:
            taken.add(unit)
            left -= unit[1]
    return [_kept(taken, layer) for layer in layers]


def _unit_costs(model: FilbertForSequenceClassification, whole: list[KeptUnits], count: Count) -> list[dict[str, int]]:
    """The cost of one head and of one neuron of each layer: counted by removing one, once for all layers of a type."""
    types = [type(layer) for layer in model.bert.encoder.layer]
    costs: dict[type, dict[str, int]] = {}
    for layer_type in set(types):
        layers = [number for number, other in enumerate(types) if other is layer_type]
        costs[layer_type] = {kind: _unit_cost(model, whole, layers, kind, count) for kind in KINDS}
    return [costs[layer_type] for layer_type in types]


def _unit_cost(
    model: FilbertForSequenceClassification, whole: list[KeptUnits], layers: list[int], kind: str, count: Count
) -> int:
    """The cost of one unit, counted in the widest of some layers; 1 where that has a single one, which is kept in any case."""
    widest = max(layers, key=lambda number: len(getattr(whole[number], kind)))
    units = getattr(whole[widest], kind)
    if len(units) == 1:
        return 1
    fewer = replace(whole[widest], **{kind: units[:-1]})
    return count(model) - count(prune(model, [*whole[:widest], fewer, *whole[widest + 1 :]]))


def _kept(taken: Iterable[Unit], layer: int) -> KeptUnits:
    heads, neurons = (torch.tensor(sorted(u[4] for u in taken if u[2:4] == (layer, kind))) for kind in KINDS)
    return KeptUnits(heads, neurons)


@dataclass(frozen=True)
class TargetConfig:
    """The shape to prune to: the same heads and neurons in every layer, or a budget that importance divides among layers."""

    layers: PositiveInt | None  # none: as many as there are
    rank: NonNegativeInt  # of the factorised word embedding; 0: it is not factorised
    heads: PositiveInt | None  # of each layer
    intermediate: PositiveInt | None  # neurons of each layer
    parameters: PositiveInt | None  # at most so many
    multiply_adds: PositiveInt | None  # at most so many, on the training row of median length

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


def widths_towards(
    target: TargetConfig, student: Student, scores: Sequence[UnitScores], event: int, events: int, start: Student,
    rows: TokenizedDataset, device: torch.device,
) -> tuple[list[KeptUnits], int]:  # fmt: skip
    """What `prune` leaves of the student at one of several events that lead from the widths of `start` to those of the target:
    the kept units, and the rank of the word embedding."""
    shape, rank = start.config, 0
    if target.rank:
        rank = interpolate(shape.embedding_size or shape.hidden_size, target.rank, event, events)
    if target.heads and target.intermediate:
        heads = interpolate(max(shape.layer_heads), target.heads, event, events)
        neurons = interpolate(max(shape.layer_intermediate), target.intermediate, event, events)
        return top_k(scores, heads, neurons), rank
    kind = "parameters" if target.parameters else "multiply_adds"
    count = cost_counter(kind, representative_batch(rows, 1).to(device))
    budget = interpolate(count(start), getattr(target, kind), event, events)
    factorised = prune(student, keep_all(student), rank)  # what is left of the budget depends on the rank
    return allocate_budget(factorised, scores, count, budget), rank
