"""Hinton's distillation: what `kd` and `kd_transfer` share."""

from dataclasses import dataclass

from filbert.methods.context import MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    temperature: float
    teacher_weight: float  # weight of the teacher; the labels have 1 - soft
    fit: TrainingConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """What the teacher must be asked."""
    return ("logits",)


def distil(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on cached logits, and labels where there are any."""
    student = study.student()
    loss = study.kd_loss(student, config.temperature, config.teacher_weight)
    study.fit(student, loss, study.with_targets(["logits"]), config.fit, phase="train")
    return student
