"""A control of RefBERT: the reference is zero. What `refbert` has over it is due to what the reference says, not to the
parameters that read it."""

from filbert.methods.context import MethodContext
from filbert.methods.referenced import Config, columns, distil
from filbert.models.reference_bert import ReferenceForSequenceClassification

__all__ = ["Config", "columns", "compress"]


def compress(study: MethodContext, config: Config) -> ReferenceForSequenceClassification:
    """Train a student with all of RefBERT's parameters and nothing to read."""
    return distil(study, config, pick="zero")
