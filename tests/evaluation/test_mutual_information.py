"""The InfoNCE estimate against Gaussians, whose mutual information has a closed form."""

import math

import pytest
import torch

from filbert.evaluation.mutual_information import InformationConfig, information_gain

CONFIG = InformationConfig(rows=4000, batch=128, epochs=10)


def gaussians(correlation: float, rows: int = 4000, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(rows, size)
    return x, correlation * x + (1 - correlation**2) ** 0.5 * torch.randn(rows, size)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.8])
def test_it_bounds_the_truth_from_below_and_comes_near(correlation: float) -> None:
    x, t = gaussians(correlation)
    truth = -2 * math.log(1 - correlation**2)  # size / 2 times -log(1 - correlation²)
    found = information_gain(x, t, {}, CONFIG, seed=1)["without"]
    assert 0.9 * truth - 0.1 <= found <= truth + 0.1


def test_a_reference_that_says_nothing_gains_nothing() -> None:
    t = gaussians(0.0)[0]
    s, telling = t + 1.5 * torch.randn_like(t), t + 0.5 * torch.randn_like(t)
    found = information_gain(s, t, {"nearest": telling, "random": telling[torch.randperm(len(t))]}, CONFIG, seed=1)
    assert found["gain_nearest"] > 0.5
    assert abs(found["gain_random"]) < 0.15


def test_the_estimate_leaves_the_generator_alone() -> None:
    x, t = gaussians(0.5, rows=600)
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    first = information_gain(x, t, {"more": t}, InformationConfig(600, 64, 2), seed=1)
    assert torch.equal(torch.rand(2), wanted)
    assert information_gain(x, t, {"more": t}, InformationConfig(600, 64, 2), seed=1) == first
