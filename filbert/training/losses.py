"""Losses against labels and against a teacher's outputs: pure functions of tensors that return a scalar."""

import torch.nn.functional as F
from torch import Tensor

from filbert.data.tasks import TaskKind


def has_label(label: Tensor) -> Tensor:
    """Which of the rows [B], or tokens [B, T], have a label: a missing one is the class -1, or NaN in a regression and throughout a
    multilabel row [B, C]."""
    if not label.is_floating_point():
        return label >= 0
    return ~label.isnan() if label.dim() == 1 else ~label.isnan().any(-1)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy of logits [B, C] against classes [B]."""
    return F.cross_entropy(logits.float(), label)


def binary_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean binary cross entropy of logits [B, C] against the labels [B, C] of multilabel rows, 0 or 1."""
    return F.binary_cross_entropy_with_logits(logits.float(), label)


def squared_error(logits: Tensor, label: Tensor) -> Tensor:
    """Mean squared error of logits [B, 1] against numbers [B]."""
    return F.mse_loss(logits.float().squeeze(-1), label)


def softened_kl(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence from the teacher's softened distribution to the student's, from logits [B, C], times T² so that the size of
    its gradient does not depend on T (Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2)."""
    target = F.log_softmax(teacher.float() / temperature, dim=-1)
    ours = F.log_softmax(logits.float() / temperature, dim=-1)
    return F.kl_div(ours, target, reduction="batchmean", log_target=True) * temperature**2


def softened_binary_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean binary cross entropy of each label against the teacher's softened probability, from logits [B, C], times T². Ours: for
    multilabel rows `softened_kl` of two classes label by label, plus the teacher's entropy, which has no gradient."""
    target = (teacher.float() / temperature).sigmoid()
    return F.binary_cross_entropy_with_logits(logits.float() / temperature, target) * temperature**2


def output_mse(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean squared error of outputs [B, 1] of a regression; the temperature has no effect."""
    return F.mse_loss(logits.float(), teacher.float())


def hidden_state_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of hidden states [B, T, D] over real tokens, `mask` [B, T] (Jiao et al. 2020, TinyBERT, equations 8 and
    9; the official code averages over padding as well)."""
    return _masked_mean((student.float() - teacher.float()).square().mean(-1), mask)


def attention_score_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of attention scores [B, heads, T, T] before the softmax, over pairs of real tokens (Jiao et al. 2020,
    TinyBERT, equation 7)."""
    pairs = mask[:, :, None] & mask[:, None, :]
    return _masked_mean((student.float() - teacher.float()).square().mean(1), pairs)


def normalized_state_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of states [B, layers, D], each scaled to length 1 (Sun et al. 2019, PKD, equation 7)."""
    return F.mse_loss(F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum()


def task_loss(kind: TaskKind, logits: Tensor, label: Tensor) -> Tensor:
    """A task's own loss over the rows [B], or tokens [B, T], that have a label; zero where none has."""
    labelled = has_label(label)
    return TASK_LOSSES[kind](logits[labelled], label[labelled]) if labelled.any() else 0 * logits.sum()


TASK_LOSSES = dict.fromkeys((TaskKind.SINGLE, TaskKind.PAIR, TaskKind.TAGGING), cross_entropy) | {
    TaskKind.MULTILABEL: binary_cross_entropy,
    TaskKind.REGRESSION: squared_error,
}
DISTILLATION_LOSSES = dict.fromkeys((TaskKind.SINGLE, TaskKind.PAIR, TaskKind.TAGGING), softened_kl) | {
    TaskKind.MULTILABEL: softened_binary_cross_entropy,
    TaskKind.REGRESSION: output_mse,
}
