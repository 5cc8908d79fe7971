"""`rosita` on training and transfer rows, as the paper trains on augmented data: none of its stages reads a label."""

from filbert.bert import FilbertForSequenceClassification
from filbert.rounds import ThreeStagesConfig as Config
from filbert.rounds import of_prediction as columns
from filbert.rounds import three_stages
from filbert.study import Study

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Distil, shorten, narrow, on all rows."""
    return three_stages(study.with_transfer(), config)
