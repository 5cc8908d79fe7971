"""AdamW that updates of a large embedding table only the rows that occur in the batch, as torch.optim.SparseAdam does.

Most rows of a vocabulary do not occur in a batch; their gradients, moments and weight decay are most of the memory traffic of a
small model's step. Lazily updated, the moments of a row wait until it occurs again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from filbert.runtime import distributed

LARGE = 1_000_000  # parameters from which an embedding table is updated by rows
Moments = dict[str, dict[str, Tensor]]  # by parameter AdamW's state: step, exp_avg, exp_avg_sq


class RowAdamW(torch.optim.AdamW):
    """AdamW (Loshchilov, Hutter 2019, arXiv 1711.05101); a sparse gradient updates its rows alone. The state of a parameter is
    AdamW's: step, exp_avg, exp_avg_sq."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step: rows of sparse gradients first, then all dense parameters, fused."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    self._update_rows(parameter, group)
                    parameter.grad = None
        return super().step(closure)

    def _update_rows(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient, state = parameter.grad.coalesce(), self.state[parameter]
        if not state:
            state |= {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        rows, values, (beta1, beta2) = gradient.indices()[0], gradient.values(), group["betas"]
        state["step"] += 1
        step, rate = float(state["step"]), group["lr"]
        first, second, weights = (t.index_select(0, rows) for t in (state["exp_avg"], state["exp_avg_sq"], parameter))
        first.lerp_(values, 1 - beta1)
        second.mul_(beta2).addcmul_(values, values, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, first)
        state["exp_avg_sq"].index_copy_(0, rows, second)
        denominator = (second.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
        weights.mul_(1 - rate * group["weight_decay"]).addcdiv_(first, denominator, value=-rate / (1 - beta1**step))
        parameter.index_copy_(0, rows, weights)


def moments_of(model: nn.Module, optimizer: torch.optim.AdamW) -> Moments:
    """AdamW's state of the parameters of `model`, by their names."""
    return {name: dict(optimizer.state[p]) for name, p in model.named_parameters() if p in optimizer.state}


def set_moments(model: nn.Module, optimizer: torch.optim.AdamW, moments: Moments) -> None:
    """Let the optimiser go on with `moments`; parameters that they lack begin anew."""
    for name, parameter in model.named_parameters():
        if name in moments and parameter.requires_grad:
            optimizer.state[parameter] = {key: value.clone() for key, value in moments[name].items()}


def clip_gradients(parameters: list[nn.Parameter], largest: float) -> None:
    """Scale all gradients so that their norm is at most `largest`; as torch's clip_grad_norm_, sparse ones included."""
    values = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            values.append(parameter.grad.values())
        elif parameter.grad is not None:
            values.append(parameter.grad)
    norm = nn.utils.get_total_norm(values)
    torch._foreach_mul_(values, torch.clamp(largest / (norm + 1e-6), max=1.0))


@contextmanager
def sparse_embeddings(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Let the large embedding tables of a model that trains on one CPU process have sparse gradients; not those that share their
    table with another module, such as a masked language model's output."""
    names: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)] = names.get(id(parameter), 0) + 1
    tables = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.weight.numel() >= LARGE and names[id(module.weight)] == 1
    ]
    for module in tables if device.type == "cpu" and distributed.WORLD_SIZE == 1 else ():
        module.sparse = True
    try:
        yield
    finally:
        for module in tables:
            module.sparse = False
