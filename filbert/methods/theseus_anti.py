"""A control of BERT-of-Theseus: the anti-curriculum, whose probability of replacing falls (section 5.1); fine-tuning the
successor alone after it is our reconstruction."""

from filbert.methods.context import MethodContext
from filbert.methods.replacing import Config, columns, replace_modules
from filbert.models.bert import FilbertForSequenceClassification

__all__ = ["Config", "columns", "compress"]


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train the successors of the teacher's modules; `schedule: anti` is in the settings."""
    return replace_modules(study, config)
