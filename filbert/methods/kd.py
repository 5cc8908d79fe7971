"""Knowledge distillation (Hinton, Vinyals, Dean 2015, arXiv 1503.02531): the student also learns the teacher's logits.

Soft targets are the teacher's logits at temperature T; their KL divergence, times T², is mixed with the loss on the
labels. The teacher's logits come from the cache: no teacher runs here.
"""

from dataclasses import dataclass

from torch import Tensor

from filbert.bert import FilbertForSequenceClassification
from filbert.data import Batch
from filbert.students import ask
from filbert.study import Study
from filbert.train import FitConfig


@dataclass(frozen=True)
class Config:
    temperature: float
    soft: float  # weight of the teacher; the labels have 1 - soft
    fit: FitConfig


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on labels and cached logits."""
    student = study.student()
    rows = study.train.taught(study.cache.on(study.train))

    def loss(batch: Batch) -> Tensor:
        logits = ask(student, batch).logits
        soft = study.soft_loss(logits, batch, config.temperature)
        return config.soft * soft + (1 - config.soft) * study.hard_loss(logits, batch)

    study.fit(student, loss, rows, config.fit, phase="train")
    return student
