"""A control of RefBERT: the reference is any other training row. What `refbert` has over it is due to similarity."""

from filbert.reference_bert import ReferenceForSequenceClassification
from filbert.referenced import Config, columns, distil
from filbert.study import Study

__all__ = ["Config", "columns", "compress"]


def compress(study: Study, config: Config) -> ReferenceForSequenceClassification:
    """Train a student whose reference is drawn at random from the training rows."""
    return distil(study, config, pick="random")
