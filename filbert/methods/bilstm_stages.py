"""XtremeDistil's D4.1, a control of `bilstm`: each of its stages trains the whole student, whose section says `unfreeze: false`."""

from filbert.bilstm import BiLstmForSequenceClassification
from filbert.recurrent import StagesConfig as Config
from filbert.recurrent import columns, in_stages
from filbert.study import Study

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


def compress(study: Study, config: Config) -> BiLstmForSequenceClassification:
    """Representation, logits, labels; all layers at once."""
    return in_stages(study, config)
