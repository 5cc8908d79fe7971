"""Fine-tuning: the student learns from the labels alone, no teacher. The baseline every compression method must beat.

The student of bottom layers fine-tuned on the task is the "Fine-tuning" row of Xu et al. 2020 (BERT-of-Theseus,
arXiv 2002.02925, table 2).
"""

from dataclasses import dataclass

from filbert.bert import FilbertForSequenceClassification
from filbert.layerwise import Depth
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
    study.fit(student, study.learn_labels(student), study.train, config.fit, phase="train")
    return student
