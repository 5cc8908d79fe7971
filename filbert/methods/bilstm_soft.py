"""Soft distillation alone, a control of `bilstm`: its stages are those of logits and labels; its section names no other."""

from filbert.methods.context import MethodContext
from filbert.methods.recurrent import StagesConfig as Config
from filbert.methods.recurrent import columns, in_stages
from filbert.models.bilstm import BiLstmForSequenceClassification

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


def compress(study: MethodContext, config: Config) -> BiLstmForSequenceClassification:
    """Logits, labels."""
    return in_stages(study, config)
