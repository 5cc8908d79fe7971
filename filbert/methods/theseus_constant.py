"""A control of BERT-of-Theseus: modules are replaced with one probability until the successor is fine-tuned (section 3.3)."""

from filbert.methods.context import MethodContext
from filbert.methods.replacing import Config, columns, replace_modules
from filbert.models.bert import FilbertForSequenceClassification

__all__ = ["Config", "columns", "compress"]


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train the successors of the teacher's modules; `schedule: constant` is in the settings."""
    return replace_modules(study, config)
