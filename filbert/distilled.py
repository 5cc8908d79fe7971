"""Hinton's distillation: what `kd` and `kd_transfer` share."""

from dataclasses import dataclass

from filbert.bert import FilbertForSequenceClassification
from filbert.layerwise import Depth
from filbert.study import Study
from filbert.train import FitConfig


@dataclass(frozen=True)
class Config:
    temperature: float
    soft: float  # weight of the teacher; the labels have 1 - soft
    fit: FitConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked."""
    return ("logits",)


def distil(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on cached logits, and labels where there are any."""
    student = study.student()
    loss = study.learn_distilled(student, config.temperature, config.soft)
    study.fit(student, loss, study.taught(["logits"]), config.fit, phase="train")
    return student
