"""`kd` on training and transfer rows: on those without a label the teacher's logits alone are learnt."""

from filbert.bert import FilbertForSequenceClassification
from filbert.distilled import Config, columns, distil
from filbert.study import Study

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Learn cached logits, and labels where there are any."""
    return distil(study.with_transfer(), config)
