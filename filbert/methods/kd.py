"""Knowledge distillation (Hinton, Vinyals, Dean 2015, arXiv 1503.02531): the student learns the teacher's logits, too.

    L = w T² KL(softmax(z_t / T) ‖ softmax(z_s / T)) + (1 - w) CE(z_s, label) + r mean (P p_s - p_t)²

z_t are the teacher's cached logits: no teacher runs here. With `transfer: true` the rows without labels are learnt from as well,
without the second term; the labelled rows are then repeated until they are the share `labelled` of all. The last term, off by
default, is ours, after XtremeDistil's (arXiv 2004.05686, section 3.3): p is the vector that the head reads, P a projection where
the student is of another width.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from filbert.data.batches import Batch
from filbert.methods.context import MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import forward_batch
from filbert.runtime.config import Fraction, NonNegative, Positive, Range
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    temperature: Positive  # T
    teacher_weight: Fraction  # w
    representation_weight: NonNegative  # r, of what the head reads
    transfer: bool  # whether the student also learns from the transfer rows
    labelled: Annotated[float, Range(0, 0.9)]  # least share of labelled rows beside transfer rows
    training: TrainingConfig


def columns(layer_map: LayerMap, config: Config) -> tuple[str, ...]:
    """The teacher's logits and, where it is learnt, what its head reads."""
    return ("logits", "pooled") if config.representation_weight else ("logits",)


def compress(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on cached logits, on labels where there are any, and on what the teacher's head reads."""
    if config.transfer:
        context = context.with_transfer(config.labelled)
    student, learnt = context.new_student(), columns(context.layer_map, config)
    project = _projection(context, student) if "pooled" in learnt else None

    def loss(batch: Batch) -> Tensor:
        output = forward_batch(student, batch, logits_alone=True)
        prediction = context.kd_loss(output.logits, batch, config.temperature, config.teacher_weight)
        if project is None:
            return prediction
        return prediction + config.representation_weight * context.representation_loss(project(output.pooled), batch)

    context.fit(student, loss, context.with_targets(learnt), config.training, "train", project, validate_start=False)
    return student


def _projection(context: MethodContext, student: FilbertForSequenceClassification) -> nn.Module:
    """From what the student's head reads to the width of what the teacher's does."""
    ours, teachers = student.config.hidden_size, context.width("pooled")
    return nn.Identity() if ours == teachers else nn.Linear(ours, teachers)
