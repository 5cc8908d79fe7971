"""A control of BERT-of-Theseus: modules are replaced with one probability until the successor is fine-tuned (section 3.3)."""

from filbert.bert import FilbertForSequenceClassification
from filbert.replacing import Config, columns, replace_modules
from filbert.study import Study

__all__ = ["Config", "columns", "compress"]


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Train the successors of the teacher's modules; `schedule: constant` is in the settings."""
    return replace_modules(study, config)
