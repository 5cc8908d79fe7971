"""A control of BERT-of-Theseus: the anti-curriculum, whose probability of replacing falls (section 5.1); fine-tuning the
successor alone after it is our reconstruction."""

from filbert.bert import FilbertForSequenceClassification
from filbert.replacing import Config, columns, replace_modules
from filbert.study import Study

__all__ = ["Config", "columns", "compress"]


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Train the successors of the teacher's modules; `schedule: anti` is in the settings."""
    return replace_modules(study, config)
