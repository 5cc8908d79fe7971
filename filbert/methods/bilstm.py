"""XtremeDistil (Mukherjee, Awadallah 2020, ACL, arXiv 2004.05686): a BiLSTM learns its teacher's representation, then its
logits, then the labels, and in each stage its layers are unfrozen from the top.

Algorithm 1 and the official code: stage 1 the representation, end to end; stage 2 the logits by squared error, the head
alone, then the dense layer, the BiLSTM and the embedding too; stage 3 the labels with a new head, unfrozen alike. Each step has
a new optimiser and its own schedule and keeps its best weights: in stages 1 and 2 by the loss on a tenth of the rows that is
held out, in stage 3 by the validation score. For classification the representation is what the teacher's head reads. The
embedding starts as the strongest directions of the teacher's table (SVD) and holds the pieces seen in training alone.

Ours: the mean squared error in stage 1 (the first version's KLD clips raw vectors to [0, 1]; later versions took the mean squared
error too); stage 3 stops on validation rows, where the code for classification stops on the test set.
"""

from dataclasses import dataclass

import numpy as np

from filbert.bilstm import BiLstmForSequenceClassification
from filbert.layerwise import Depth
from filbert.recurrent import (
    ShapeConfig,
    learn_logits,
    learn_representation,
    new_bilstm,
    new_head,
    unfrozen,
)
from filbert.study import Study
from filbert.train import FitConfig

HELD_OUT = 10  # one row in so many


@dataclass(frozen=True)
class Config:
    shape: ShapeConfig
    unfreeze: bool  # layer by layer from the top, a training for each; or all at once
    representation: FitConfig
    logits: FitConfig
    labels: FitConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked."""
    return ("logits", "pooled")


def compress(study: Study, config: Config) -> BiLstmForSequenceClassification:
    """Representation, logits, labels."""
    student = new_bilstm(study, config.shape)
    rows, held_out = study.taught(["logits", "pooled"]), np.arange(len(study.train)) % HELD_OUT == 0
    learnt, judged = rows.part(np.flatnonzero(~held_out)), rows.part(np.flatnonzero(held_out))
    study.fit_by_loss(student, learn_representation(student), learnt, judged, config.representation, "representation")
    for part in unfrozen(student, config.unfreeze):
        study.fit_by_loss(student, learn_logits(student), learnt, judged, config.logits, f"logits-{part}")
    new_head(student, study.seed)
    for part in unfrozen(student, config.unfreeze):
        study.fit(student, study.learn_labels(student), study.train, config.labels, f"labels-{part}")
    return student
