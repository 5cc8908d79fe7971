"""Fine-tuning: the student learns from the labels alone. The baseline that every compression method must beat.

The student of some of BERT's layers fine-tuned on the task is the "Fine-tuning" row of Xu et al. 2020 (BERT-of-Theseus,
arXiv 2002.02925, table 2).
"""

from dataclasses import dataclass

from filbert.methods.context import MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    training: TrainingConfig


def columns(layer_map: LayerMap, config: Config) -> tuple[str, ...]:
    """No output of the teacher is used."""
    return ()


def compress(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on the labels."""
    student = context.new_student()
    context.fit(student, context.label_loss(student), context.train, config.training, "train", validate_start=False)
    return student
