"""Losses against closed forms."""

import math

import torch

from filbert.data.tasks import TaskKind
from filbert.training import losses


def test_every_kind_has_its_losses() -> None:
    assert set(losses.TASK_LOSSES) == set(losses.DISTILLATION_LOSSES) == set(TaskKind) - {TaskKind.TEXT}


def test_the_soft_loss_is_the_kl_divergence_times_the_square_of_the_temperature() -> None:
    student, teacher, temperature = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]]), 1.0
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    torch.testing.assert_close(losses.softened_kl(student, teacher, temperature), torch.tensor(expected))
    hot = losses.softened_kl(2 * student, 2 * teacher, 2.0)  # the same softened distributions
    torch.testing.assert_close(hot, torch.tensor(4 * expected))


def test_a_student_that_says_what_its_teacher_says_has_no_soft_loss() -> None:
    logits = torch.randn(5, 3)
    assert losses.softened_kl(logits + 7, logits, 3.0).abs() < 1e-6  # a shift changes no probability
    assert losses.output_mse(logits[:, :1], logits[:, :1], 3.0) == 0


def test_hot_gradients_tend_to_the_logit_difference() -> None:
    """Hinton et al. 2015, equation 4: for high T the gradient is (z - v) / C for centred logits, T² included."""
    student = torch.tensor([[0.3, -0.3]], requires_grad=True)
    teacher = torch.tensor([[-0.5, 0.5]])
    losses.softened_kl(student, teacher, 1000.0).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 2, rtol=1e-3, atol=1e-4)


def test_hard_losses() -> None:
    torch.testing.assert_close(
        losses.cross_entropy(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])), torch.tensor(math.log(3))
    )
    assert losses.squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 5.0])) == 2.5
