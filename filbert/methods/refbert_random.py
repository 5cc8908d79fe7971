"""A control of RefBERT: the reference is any other training row. What `refbert` has over it is due to similarity."""

from filbert.methods.context import MethodContext
from filbert.methods.referenced import Config, columns, distil
from filbert.models.reference_bert import ReferenceForSequenceClassification

__all__ = ["Config", "columns", "compress"]


def compress(study: MethodContext, config: Config) -> ReferenceForSequenceClassification:
    """Train a student whose reference is drawn at random from the training rows."""
    return distil(study, config, pick="random")
