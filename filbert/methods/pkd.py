"""Patient knowledge distillation (Sun et al. 2019, EMNLP, arXiv 1908.09355): the first token's states follow the teacher's.

    L = (1 - a) L_labels + a L_KD(T) + b L_PT    L_PT = mean_j ‖ h_j / ‖h_j‖ - t_I(j) / ‖t_I(j)‖ ‖² / D

over the student's layers but the last, I(j) = j N / M ("skip"). The mean over layers and values is the official code's as we
remember it, not read: our reconstruction. The teacher's words come from the cache.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from filbert.data.batches import Batch
from filbert.methods.context import MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import forward_batch
from filbert.training import losses
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    temperature: float
    teacher_weight: float  # weight a of the teacher's logits; the labels have 1 - a
    patience: float  # weight b of the first token's states
    fit: TrainingConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """What the teacher must be asked."""
    return ("logits", *_followed(depth))


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on labels, cached logits and the cached states of the first token."""
    student, followed = study.student(), _followed(study.depth)

    def loss(batch: Batch) -> Tensor:
        answer = forward_batch(student, batch, states=True)
        prediction = study.distillation_loss(answer.logits, batch, config.temperature, config.teacher_weight)
        if not followed:
            return prediction
        ours = torch.stack([states[:, 0] for states in answer.hidden_states[1:-1]], dim=1)
        theirs = torch.stack([batch.targets[column][:, 0].float() for column in followed], dim=1)
        return prediction + config.patience * losses.normalized_state_mse(ours, theirs)

    study.fit(student, loss, study.with_targets(["logits", *followed]), config.fit, phase="train")
    return student


def _followed(depth: LayerMap) -> list[str]:
    return [f"hidden.{depth.teacher_layer(layer)}" for layer in range(1, depth.student)]
