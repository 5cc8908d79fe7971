"""Fine-tuning: the student learns from the labels alone, no teacher. The baseline every compression method must beat.

The student of bottom layers fine-tuned on the task is the "Fine-tuning" row of Xu et al. 2020 (BERT-of-Theseus,
arXiv 2002.02925, table 2).
"""

from dataclasses import dataclass

from filbert.methods.context import MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    fit: TrainingConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """What the teacher must be asked: nothing."""
    return ()


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on the labels."""
    student = study.student()
    study.fit(student, study.label_loss(student), study.train, config.fit, phase="train")
    return student
