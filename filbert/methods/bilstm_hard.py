"""Hard distillation (Mukherjee, Awadallah 2019, arXiv 1910.01769; our reconstruction): what the teacher answers on transfer rows
is their label. A control of `bilstm`, and that paper's first result."""

from filbert.methods.context import MethodContext
from filbert.methods.recurrent import AllAtOnceConfig as Config
from filbert.methods.recurrent import as_long, columns, learn_hard, new_bilstm
from filbert.models.bilstm import BiLstmForSequenceClassification

__all__ = ["TRANSFER", "Config", "columns", "compress"]
TRANSFER = True


def compress(study: MethodContext, config: Config) -> BiLstmForSequenceClassification:
    """Train a fresh student on labels and the teacher's answers."""
    student, rows = new_bilstm(study, config.shape), study.with_transfer().with_targets(["logits"])
    study.fit(student, learn_hard(student, study), rows, as_long(study, rows, config), phase="train")
    return student
