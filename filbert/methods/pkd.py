"""Patient knowledge distillation (Sun et al. 2019, EMNLP, arXiv 1908.09355): the first token's states follow the teacher's.

    L = (1 - a) L_labels + a L_KD(T) + b L_PT    L_PT = mean_j ‖ h_j / ‖h_j‖ - t_I(j) / ‖t_I(j)‖ ‖² / D

over the student's layers but the last, I(j) = j N / M ("skip"). The mean over layers and values is the official code's as we
remember it, not read: our reconstruction. The teacher's words come from the cache.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from filbert import losses
from filbert.bert import FilbertForSequenceClassification
from filbert.data import Batch
from filbert.layerwise import Depth
from filbert.students import ask
from filbert.study import Study
from filbert.train import FitConfig


@dataclass(frozen=True)
class Config:
    temperature: float
    soft: float  # weight a of the teacher's logits; the labels have 1 - a
    patience: float  # weight b of the first token's states
    fit: FitConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked."""
    return ("logits", *_followed(depth))


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on labels, cached logits and the cached states of the first token."""
    student, followed = study.student(), _followed(study.depth)

    def loss(batch: Batch) -> Tensor:
        answer = ask(student, batch, states=True)
        prediction = study.distilled_loss(answer.logits, batch, config.temperature, config.soft)
        if not followed:
            return prediction
        ours = torch.stack([states[:, 0] for states in answer.hidden_states[1:-1]], dim=1)
        theirs = torch.stack([batch.teacher[column][:, 0].float() for column in followed], dim=1)
        return prediction + config.patience * losses.patient(ours, theirs)

    study.fit(student, loss, study.taught(["logits", *followed]), config.fit, phase="train")
    return student


def _followed(depth: Depth) -> list[str]:
    return [f"hidden.{depth.of_teacher(layer)}" for layer in range(1, depth.student)]
