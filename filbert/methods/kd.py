"""Knowledge distillation (Hinton, Vinyals, Dean 2015, arXiv 1503.02531): the student also learns the teacher's logits.

Soft targets are the teacher's logits at temperature T; their KL divergence, times T², is mixed with the loss on the
labels. The teacher's logits come from the cache: no teacher runs here.
"""

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


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on labels and cached logits."""
    student = study.student()
    loss = study.learn_distilled(student, config.temperature, config.soft)
    study.fit(student, loss, study.taught(["logits"]), config.fit, phase="train")
    return student
