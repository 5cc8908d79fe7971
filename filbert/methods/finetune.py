"""Fine-tuning: the student learns from the labels alone, no teacher. The baseline every compression method must beat.

The student of bottom layers fine-tuned on the task is the "Fine-tuning" row of Xu et al. 2020 (BERT-of-Theseus,
arXiv 2002.02925, table 2).
"""

from dataclasses import dataclass

from torch import Tensor

from filbert.bert import FilbertForSequenceClassification
from filbert.data import Batch
from filbert.layerwise import Depth
from filbert.students import ask
from filbert.study import Study
from filbert.train import FitConfig


@dataclass(frozen=True)
class Config:
    fit: FitConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked: nothing."""
    return ()


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on the labels."""
    student = study.student()

    def loss(batch: Batch) -> Tensor:
        return study.hard_loss(ask(student, batch).logits, batch)

    study.fit(student, loss, study.train, config.fit, phase="train")
    return student
