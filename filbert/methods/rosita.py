"""ROSITA (Liu, Lin, Yuan 2021, AAAI, arXiv 2103.11367): pruning in rounds, factorisation and distillation in three stages.

Setting 4 of the official code: the fine-tuned teacher teaches a student of its own shape; that one, cut layer by layer, learns
from its former self; the shorter one, its heads, neurons and embedding cut in rounds, learns from its own former states.
Operators are in pruning.py, stages in rounds.py. Read from the official code, not from the paper's text: what is ours is said
there. Not the paper's: no augmentation yet. Against it stand `rosita_s1` to `rosita_s3`, the code's other settings, and
`rosita_finetune`, the same shape without distillation; `rosita_transfer` learns from transfer rows too, as the paper's does.
"""

from filbert.methods.context import MethodContext
from filbert.methods.rounds import ThreeStagesConfig as Config
from filbert.methods.rounds import logits_only as columns
from filbert.methods.rounds import three_stages
from filbert.models.bert import FilbertForSequenceClassification

__all__ = ["Config", "columns", "compress"]


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Distil, shorten, narrow."""
    return three_stages(study, config)
