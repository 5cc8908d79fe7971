"""Layer-wise distillation (Jiao et al. 2020, TinyBERT, arXiv 1909.10351): the student's states and attention scores follow
the teacher's, layer by layer; what `tinybert` and `refbert` share.

    L = sum_{m=0..M} MSE(H_m W, T_g(m)) + a sum_{m=1..M} MSE(A_m, A_g(m))        g(m) = m N / M

As in the official code one W with bias serves all layers. Ours: the weight a (the paper's is 1); W starts as the identity
where student and teacher are of one width; means are over real tokens only; g is rounded where M does not divide N.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from filbert import FilbertError
from filbert.data.batches import Batch
from filbert.data.tasks import TaskKind
from filbert.models.activations import LAYERED, PROJECTIONS, ActivationRecorder, column_for_task, parse_column
from filbert.training import losses


@dataclass(frozen=True)
class LayerMap:
    """Layers of student and teacher."""

    student: int
    teacher: int

    def teacher_layer(self, layer: int) -> int:
        """The teacher's layer that the student's `layer` follows; layer 0 is the embedding (section 4.1, uniform)."""
        return round(layer * self.teacher / self.student)

    def columns(self, attention: bool = True) -> tuple[str, ...]:
        """The columns of the teacher's cache that it needs: logits, hidden states and (if wanted) attention scores."""
        pairs = [(m, self.teacher_layer(m)) for m in range(self.student + 1)]
        scores = [f"attention.{n}" for m, n in pairs if m and attention]
        return ("logits", *(f"hidden.{n}" for _, n in pairs), *scores)


@dataclass(frozen=True)
class CacheColumnsConfig:
    """Which outputs of the teacher are cached: names of columns; `hidden`, `words`, `attention` or `values` without a layer stand for
    the layers of the layer map (whose last one is the teacher's last)."""

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
            parse_column(name)
            return [name]
        first = 1 if name in PROJECTIONS else 0
        mapped = [layers.teacher_layer(layer) for layer in range(first, layers.student + 1)]
        return [f"{name}.{layer}" for layer in mapped]


class LayerwiseLoss(nn.Module):
    """The layer-wise loss of a student, and the projection W [student's width, teacher's width] that it trains."""

    def __init__(self, student: PreTrainedModel, depth: LayerMap, teacher_width: int, attention: float = 1.0):
        super().__init__()
        self.depth, self.attention = depth, attention
        self.projection = init_identity(nn.Linear(student.config.hidden_size, teacher_width))
        own = [f"hidden.{m}" for m in range(depth.student + 1)]
        own += [f"attention.{m + 1}" for m in range(depth.student) if attention]
        self.listen = ActivationRecorder(student, own)

    def __enter__(self) -> "LayerwiseLoss":
        return self

    def __exit__(self, *_: object) -> None:
        self.listen.__exit__()

    @property
    def columns(self) -> list[str]:
        """What of the teacher is followed."""
        return [self._followed(column) for column in self.listen.columns]

    def _followed(self, column: str) -> str:
        kind, layer = parse_column(column)
        return f"{kind}.{self.depth.teacher_layer(layer)}"

    def loss(self, batch: Batch) -> Tensor:
        """The sum of all terms, against the teacher's words in the batch."""
        said = self.listen(batch)[1]
        return torch.stack([self._term(column, said[column], batch) for column in said]).sum()

    def _term(self, column: str, ours: Tensor, batch: Batch) -> Tensor:
        kind, layer = parse_column(column)
        theirs = batch.targets[self._followed(column)]
        if kind == "hidden":
            return losses.hidden_state_mse(self.projection(ours), theirs, batch.mask)
        if ours.shape != theirs.shape:
            raise FilbertError(
                f"layer {layer}: the student has {ours.shape[1]} heads, the teacher {theirs.shape[1]}; the attention loss needs "
                "as many"
            )
        return self.attention * losses.attention_score_mse(ours, theirs, batch.mask)


def init_identity(projection: nn.Linear) -> nn.Linear:
    """A projection that starts as the identity where both sides are of one width: they speak of the same checkpoint."""
    if projection.in_features == projection.out_features:
        nn.init.eye_(projection.weight)
        nn.init.zeros_(projection.bias)
    return projection
