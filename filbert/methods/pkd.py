"""Patient knowledge distillation (Sun et al. 2019, EMNLP, arXiv 1908.09355): the [CLS] states follow the teacher's, layer by layer.

    L = (1 - w) L_CE + w L_KD(T) + b L_PT        L_PT = mean_j ‖ h_j / ‖h_j‖ - t_I(j) / ‖t_I(j)‖ ‖² / D

over the student's layers but the last, I(j) = j N / M ("skip"). The mean over layers and values is the official code's as we
remember it, not read: our reconstruction. The teacher's outputs come from the cache.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from filbert.data.batches import Batch
from filbert.methods.context import MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import forward_batch
from filbert.runtime.config import Fraction, NonNegative, Positive
from filbert.training import losses
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    temperature: Positive  # T
    teacher_weight: Fraction  # w
    hidden_weight: NonNegative  # b, of the [CLS] states
    training: TrainingConfig


def columns(layer_map: LayerMap, config: Config) -> tuple[str, ...]:
    """The teacher's logits and the states of the followed layers."""
    return ("logits", *_followed(layer_map))


def compress(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on labels, cached logits and cached [CLS] states."""
    student, followed = context.new_student(), _followed(context.layer_map)

    def loss(batch: Batch) -> Tensor:
        output = forward_batch(student, batch, states=True)
        prediction = context.kd_loss(output.logits, batch, config.temperature, config.teacher_weight)
        if not followed:
            return prediction
        ours = torch.stack([states[:, 0] for states in output.hidden_states[1:-1]], dim=1)
        teachers = torch.stack([batch.targets[column][:, 0].float() for column in followed], dim=1)
        return prediction + config.hidden_weight * losses.normalized_state_mse(ours, teachers)

    context.fit(
        student, loss, context.with_targets(["logits", *followed]), config.training, "train", validate_start=False
    )
    return student


def _followed(layer_map: LayerMap) -> list[str]:
    return [f"hidden.{layer_map.teacher_layer(layer)}" for layer in range(1, layer_map.student)]
