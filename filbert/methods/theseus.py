"""BERT-of-Theseus (Xu et al. 2020, EMNLP, arXiv 2002.02925): the teacher's modules are replaced at random by compact ones.

Modules of the fine-tuned teacher give way, with rising probability, to successors of one layer each, which learn in their
place from the task's own loss; nothing of the teacher is distilled. Read from the paper and its official code; what differs
is said in replacing.py. Against it stand `finetune`, `kd` and `pkd` of the same shape, and `theseus_constant` and
`theseus_anti`, which differ in the schedule alone.
"""

from filbert.methods.context import MethodContext
from filbert.methods.replacing import Config, columns, replace_modules
from filbert.models.bert import FilbertForSequenceClassification

__all__ = ["Config", "columns", "compress"]


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train the successors of the teacher's modules."""
    return replace_modules(study, config)
