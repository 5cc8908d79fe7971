"""XtremeDistil's D4.1, a control of `bilstm`: each of its stages trains the whole student, whose section says `unfreeze: false`."""

from filbert.methods.context import MethodContext
from filbert.methods.recurrent import StagesConfig as Config
from filbert.methods.recurrent import columns, in_stages
from filbert.models.bilstm import BiLstmForSequenceClassification

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


def compress(study: MethodContext, config: Config) -> BiLstmForSequenceClassification:
    """Representation, logits, labels; all layers at once."""
    return in_stages(study, config)
