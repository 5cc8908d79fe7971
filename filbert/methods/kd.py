"""Knowledge distillation (Hinton, Vinyals, Dean 2015, arXiv 1503.02531): the student learns the teacher's logits, too.

    L = w T² KL(softmax(z_t / T) ‖ softmax(z_s / T)) + (1 - w) CE(z_s, label)

z_t are the teacher's cached logits: no teacher runs here. With `transfer: true` the rows without labels are learnt from as well,
by the first term alone; the labelled rows are then repeated until they are the share `labelled` of all.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from filbert.data.batches import Batch
from filbert.methods.context import MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import forward_batch
from filbert.runtime.config import Fraction, Positive, Range
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    temperature: Positive  # T
    teacher_weight: Fraction  # w
    transfer: bool  # whether the student also learns from the transfer rows
    labelled: Annotated[float, Range(0, 0.9)]  # least share of labelled rows beside transfer rows
    training: TrainingConfig


def columns(layer_map: LayerMap, config: Config) -> tuple[str, ...]:
    """The teacher's logits."""
    return ("logits",)


def compress(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on cached logits, and on labels where there are any."""
    if config.transfer:
        context = context.with_transfer(config.labelled)
    student = context.new_student()

    def loss(batch: Batch) -> Tensor:
        logits = forward_batch(student, batch, logits_alone=True).logits
        return context.kd_loss(logits, batch, config.temperature, config.teacher_weight)

    context.fit(student, loss, context.with_targets(["logits"]), config.training, "train")
    return student
