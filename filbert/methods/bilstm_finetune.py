"""A control of `bilstm`: the same shape on the labels alone, no teacher and no transfer rows but for the pieces it knows."""

from dataclasses import dataclass

from filbert.bilstm import BiLstmForSequenceClassification
from filbert.layerwise import Depth
from filbert.recurrent import ShapeConfig, new_bilstm
from filbert.study import Study
from filbert.train import FitConfig

TRANSFER = True  # so that its embedding, its size, has the pieces that `bilstm` has


@dataclass(frozen=True)
class Config:
    shape: ShapeConfig
    fit: FitConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked; `pooled` tells the width of the student's dense layer."""
    return ("pooled",)


def compress(study: Study, config: Config) -> BiLstmForSequenceClassification:
    """Train a fresh student on the labels."""
    student = new_bilstm(study, config.shape)
    study.fit(student, study.learn_labels(student), study.train, config.fit, phase="train")
    return student
