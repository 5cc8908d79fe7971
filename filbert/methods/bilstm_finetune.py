"""A control of `bilstm`: the same shape on the labels alone. Of the teacher it knows nothing (its embedding starts as the
checkpoint's table), of the transfer rows which tokens occur."""

from filbert.methods.context import MethodContext
from filbert.methods.recurrent import AllAtOnceConfig as Config
from filbert.methods.recurrent import as_long, new_bilstm
from filbert.models.bilstm import BiLstmForSequenceClassification
from filbert.training.layerwise import LayerMap

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True  # so that its embedding, its size, has the tokens that `bilstm` has


def columns(depth: LayerMap) -> tuple[str, ...]:
    """What the teacher must be asked; `pooled` tells the width of the student's dense layer."""
    return ("pooled",)


def compress(study: MethodContext, config: Config) -> BiLstmForSequenceClassification:
    """Train a fresh student on the labels."""
    student = new_bilstm(study, config.shape)
    study.fit(student, study.label_loss(student), study.train, as_long(study, study.train, config), phase="train")
    return student
