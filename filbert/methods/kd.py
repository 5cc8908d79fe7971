"""Knowledge distillation (Hinton, Vinyals, Dean 2015, arXiv 1503.02531): the student also learns the teacher's logits.

Soft targets are the teacher's logits at temperature T; their KL divergence, times T², is mixed with the loss on the
labels. The teacher's logits come from the cache: no teacher runs here.
"""

from filbert.methods.context import MethodContext
from filbert.methods.distilled import Config, columns, distil
from filbert.models.bert import FilbertForSequenceClassification

__all__ = ["Config", "columns", "compress"]


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Learn labels and cached logits."""
    return distil(study, config)
