"""XtremeDistil (Mukherjee, Awadallah 2020, ACL, arXiv 2004.05686): a BiLSTM learns its teacher's representation, then its
logits, then the labels, and in each stage its layers are unfrozen from the top.

Algorithm 1 and the official code, on training and transfer rows: stage 1 the representation, end to end; stage 2 the logits by
squared error, the head alone, then the dense layer, the BiLSTM and the embedding too; stage 3 the labels with a new head,
unfrozen alike. For classification the representation is what the teacher's head reads. The embedding starts as the strongest
directions of the teacher's table. The stages are in recurrent.py; without `labels` in its section it needs none but those of the
validation rows.

Ours: the mean squared error in stage 1 (the first version's KLD clips raw vectors to [0, 1]; later versions took the mean squared
error too). Against it stand `bilstm_finetune`, the same shape without a teacher, `bilstm_hard` and `bilstm_soft`, which learn
less of the teacher, `bilstm_stages` without unfreezing, and `bilstm_joint`.
"""

from filbert.methods.context import MethodContext
from filbert.methods.recurrent import StagesConfig as Config
from filbert.methods.recurrent import columns, in_stages
from filbert.models.bilstm import BiLstmForSequenceClassification

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


def compress(study: MethodContext, config: Config) -> BiLstmForSequenceClassification:
    """Representation, logits, labels."""
    return in_stages(study, config)
