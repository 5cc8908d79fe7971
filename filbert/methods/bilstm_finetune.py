"""A control of `bilstm`: the same shape on the labels alone. Of the teacher it knows nothing (its embedding starts as the
checkpoint's table), of the transfer rows which pieces occur."""

from filbert.bilstm import BiLstmForSequenceClassification
from filbert.layerwise import Depth
from filbert.recurrent import AllAtOnceConfig as Config
from filbert.recurrent import as_long, new_bilstm
from filbert.study import Study

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True  # so that its embedding, its size, has the pieces that `bilstm` has


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked; `pooled` tells the width of the student's dense layer."""
    return ("pooled",)


def compress(study: Study, config: Config) -> BiLstmForSequenceClassification:
    """Train a fresh student on the labels."""
    student = new_bilstm(study, config.shape)
    study.fit(student, study.learn_labels(student), study.train, as_long(study, study.train, config), phase="train")
    return student
