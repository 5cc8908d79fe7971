"""XtremeDistil's D2, a control of `bilstm`: labels, logits and representation in one weighted loss instead of in stages."""

from dataclasses import dataclass

from filbert.methods.context import MethodContext
from filbert.methods.recurrent import AllAtOnceConfig, WeightsConfig, as_long, columns, learn_jointly, new_bilstm
from filbert.models.bilstm import BiLstmForSequenceClassification

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


@dataclass(frozen=True)
class Config(AllAtOnceConfig):
    weights: WeightsConfig


def compress(study: MethodContext, config: Config) -> BiLstmForSequenceClassification:
    """Train a fresh student on everything at once."""
    student, rows = new_bilstm(study, config.shape), study.with_transfer().with_targets(["logits", "pooled"])
    study.fit(student, learn_jointly(student, study, config.weights), rows, as_long(study, rows, config), phase="train")
    return student
