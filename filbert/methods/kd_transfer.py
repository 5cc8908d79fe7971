"""`kd` on training and transfer rows: on those without a label the teacher's logits alone are learnt."""

from filbert.methods.context import MethodContext
from filbert.methods.distilled import Config, columns, distil
from filbert.models.bert import FilbertForSequenceClassification

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Learn cached logits, and labels where there are any."""
    return distil(study.with_transfer(), config)
