"""`rosita` on training and transfer rows, as the paper trains on augmented data: none of its stages reads a label."""

from filbert.methods.context import MethodContext
from filbert.methods.rounds import ThreeStagesConfig as Config
from filbert.methods.rounds import logits_only as columns
from filbert.methods.rounds import three_stages
from filbert.models.bert import FilbertForSequenceClassification

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Distil, shorten, narrow, on all rows."""
    return three_stages(study.with_transfer(), config)
