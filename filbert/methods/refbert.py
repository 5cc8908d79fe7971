"""RefBERT (Wang, Mo, Yang, Zhao 2021, arXiv 2106.08898): the student also reads what its teacher said of a similar row.

Each input is given a reference, the training row most like it but never itself. The student's first layer attends over
[itself ; the reference]: keys from the teacher's embedding output of the reference, values from its last states. It is
trained as TinyBERT, layer by layer and then the prediction, and reads references at inference too, from a store that
travels with it.

The paper's: pre-computed representations of the most similar other sample, used in the first layer's key and value, at
inference too. Our reconstruction, for the paper's formulae could not be read: BM25 over tokens as the measure of
similarity, the projections and norms (reference_bert.py), the losses and their order. Against it stand `tinybert`, the
same student and losses without a reference, and `refbert_random` and `refbert_zero`.
"""

from filbert.methods.context import MethodContext
from filbert.methods.referenced import Config, columns, distil
from filbert.models.reference_bert import ReferenceForSequenceClassification

__all__ = ["Config", "columns", "compress"]


def compress(study: MethodContext, config: Config) -> ReferenceForSequenceClassification:
    """Train a student whose reference is the nearest other training row."""
    return distil(study, config, pick="nearest")
