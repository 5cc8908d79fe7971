"""Soft distillation alone, a control of `bilstm`: its stages are those of logits and labels; its section names no other."""

from filbert.bilstm import BiLstmForSequenceClassification
from filbert.recurrent import StagesConfig as Config
from filbert.recurrent import columns, in_stages
from filbert.study import Study

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


def compress(study: Study, config: Config) -> BiLstmForSequenceClassification:
    """Logits, labels."""
    return in_stages(study, config)
