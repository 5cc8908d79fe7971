"""Layer-wise distillation (Jiao et al. 2020, TinyBERT, arXiv 1909.10351): layer by layer the student's hidden states and attention
scores are trained to equal the teacher's. Shared by `tinybert` and `refbert`.

    L = sum_{m=0..M} MSE(H_m W, T_g(m)) + a sum_{m=1..M} MSE(A_m, A_g(m))        g(m) = m N / M

M and N are the layers of student and teacher, H their hidden states, A their attention scores. As in the official code one W with
bias serves all layers. Ours: the weight a (the paper's is 1); W starts as the identity where student and teacher have the same
width; means are over real tokens only; g is rounded where M does not divide N.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from filbert import FilbertError
from filbert.data.batches import Batch
from filbert.data.tasks import TaskKind
from filbert.models.intermediate_outputs import LAYERED, PROJECTIONS, ActivationRecorder, column_for_task, parse_column
from filbert.training import losses


@dataclass(frozen=True)
class LayerMap:
    """Which layer of the teacher each layer of the student follows."""

    student: int  # number of layers
    teacher: int

    def teacher_layer(self, layer: int) -> int:
        """The teacher's layer g(m) that the student's layer m follows; layer 0 is the embedding output (section 4.1, uniform)."""
        return round(layer * self.teacher / self.student)

    def columns(self, attention: bool = True) -> tuple[str, ...]:
        """The columns of the teacher's cache that it needs: logits, hidden states and (if wanted) attention scores."""
        pairs = [(m, self.teacher_layer(m)) for m in range(self.student + 1)]
        scores = [f"attention.{n}" for m, n in pairs if m and attention]
        return ("logits", *(f"hidden.{n}" for _, n in pairs), *scores)


@dataclass(frozen=True)
class CacheColumnsConfig:
    """Which outputs of the teacher are cached: names of columns; `hidden`, `words`, `attention` or `values` without a layer stand
    for the layers of the layer map (whose last one is the teacher's last). Layers that the teacher does not have are left out."""

    train: tuple[str, ...]  # for training rows
    transfer: tuple[str, ...]  # for transfer rows

    def expand(self, layers: LayerMap, kind: TaskKind) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The columns for training and for transfer rows of a task, each once, the logits in any case for training rows.

        Raises:
            ActivationError: there is no such column.
        """
        found = [
            dict.fromkeys(column_for_task(kind, column) for name in names for column in self._columns(name, layers))
            for names in (("logits", *self.train), self.transfer)
        ]
        return tuple(found[0]), tuple(found[1])

    @staticmethod
    def _columns(name: str, layers: LayerMap) -> list[str]:
        if name not in LAYERED:
            return [name] if parse_column(name)[1] <= layers.teacher else []
        first = 1 if name in PROJECTIONS else 0
        mapped = [layers.teacher_layer(layer) for layer in range(first, layers.student + 1)]
        return [f"{name}.{layer}" for layer in mapped]


class LayerwiseLoss(nn.Module):
    """The layer-wise loss of a student, and the projection W [student's width, teacher's width] that it trains."""

    def __init__(
        self, student: PreTrainedModel, layer_map: LayerMap, teacher_width: int, attention_weight: float = 1.0
    ):
        super().__init__()
        self.layer_map, self.attention_weight = layer_map, attention_weight
        self.projection = init_identity(nn.Linear(student.config.hidden_size, teacher_width))
        own = [f"hidden.{m}" for m in range(layer_map.student + 1)]
        own += [f"attention.{m + 1}" for m in range(layer_map.student) if attention_weight]
        self.record = ActivationRecorder(student, own)

    def __enter__(self) -> "LayerwiseLoss":
        return self

    def __exit__(self, *_: object) -> None:
        self.record.__exit__()

    @property
    def columns(self) -> list[str]:
        """The columns of the teacher's cache that the loss reads."""
        return [self._teacher_column(column) for column in self.record.columns]

    def _teacher_column(self, column: str) -> str:
        kind, layer = parse_column(column)
        return f"{kind}.{self.layer_map.teacher_layer(layer)}"

    def loss(self, batch: Batch) -> Tensor:
        """The sum of all terms, against the teacher's outputs in the batch: a scalar.

        Raises:
            FilbertError: student and teacher have different numbers of heads.
        """
        own = self.record(batch)[1]
        return torch.stack([self._term(column, values, batch) for column, values in own.items()]).sum()

    def _term(self, column: str, ours: Tensor, batch: Batch) -> Tensor:
        kind, layer = parse_column(column)
        teachers = batch.targets[self._teacher_column(column)]
        if kind == "hidden":
            return losses.hidden_state_mse(self.projection(ours), teachers, batch.mask)
        if ours.shape != teachers.shape:
            raise FilbertError(
                f"layer {layer}: the student has {ours.shape[1]} heads, the teacher {teachers.shape[1]}; the attention loss needs "
                "equal numbers: set attention_weight to 0"
            )
        return self.attention_weight * losses.attention_score_mse(ours, teachers, batch.mask)


def init_identity(projection: nn.Linear) -> nn.Linear:
    """Set a projection to the identity where both sides have the same width: both come from the same checkpoint."""
    if projection.in_features == projection.out_features:
        nn.init.eye_(projection.weight)
        nn.init.zeros_(projection.bias)
    return projection
