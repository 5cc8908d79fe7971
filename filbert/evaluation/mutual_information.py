"""How much a reference adds: an InfoNCE estimate of I(S, T_R; T) - I(S; T).

I(X; T) >= log N - L_NCE for any critic f(x, t) (van den Oord et al. 2018, arXiv 1807.03748, section 2.3), N rows in a batch.
S is the student's state of a row without its reference, T_R the teacher's state of the reference, T the teacher's state of the row.
A critic of S is trained, then frozen but for a weight; a critic of T_R, which starts at zero, is added to it and trained. The
estimate is the gain over a reference of zeros. By the chain rule it estimates I(T_R; T | S) >= 0, which is 0 for a random
reference: our derivation of RefBERT's theory; the paper's own theorem could not be read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filbert.runtime.config import NonNegativeInt, PositiveInt

CriticScores = Callable[[Tensor], Tensor]  # rows [N] -> the critic's scores [N, N] of each x against each t


@dataclass(frozen=True)
class InformationConfig:
    """How the estimate is made; with 0 rows it is left out."""

    rows: NonNegativeInt  # training rows used: half to train critics, a quarter to choose their epoch, a quarter to read the bound
    batch: PositiveInt  # N: no bound exceeds log N
    epochs: NonNegativeInt


class Critic(nn.Module):
    """The score g(x) h(t) of x and t belonging to the same row."""

    def __init__(self, left: int, right: int, size: int = 128):
        super().__init__()
        self.left, self.right = (
            nn.Sequential(
                nn.BatchNorm1d(n, affine=False),
                nn.Linear(n, 2 * size),
                nn.GELU(),
                nn.Dropout(0.2),
                nn.Linear(2 * size, size),
            )
            for n in (left, right)
        )
        self.scale = nn.Parameter(torch.tensor(size**-0.5))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # [N, left], [N, right] -> [N, N]
        return self.scale * self.left(x) @ self.right(t).T


def information_gain(
    s: Tensor, t: Tensor, references: Mapping[str, Tensor], config: InformationConfig, seed: int
) -> dict[str, float]:
    """`without`, the bound on I(S; T) in nats, and for each kind of reference `gain_…`, what it adds; all on held-out rows.

    Args:
        s, t: [rows, …], one row each.
        references: by name [rows, …].
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        order = torch.randperm(len(s))
        parts = order.split([len(s) // 2, len(s) // 4, len(s) - len(s) // 2 - len(s) // 4])
        alone = Critic(s.shape[1], t.shape[1])
        _fit(alone, lambda rows: alone(s[rows], t[rows]), parts, config)
        alone.eval().requires_grad_(False)
        bounds = {}
        for name, reference in {"zeros": torch.zeros_like(t), **references}.items():
            added = Critic(reference.shape[1], t.shape[1])
            added.weight = nn.Parameter(torch.ones(()))
            nn.init.zeros_(added.scale)

            def scores(rows: Tensor, reference: Tensor = reference, added: Critic = added) -> Tensor:
                return added.weight * alone(s[rows], t[rows]) + added(reference[rows], t[rows])

            bounds[name] = _fit(added, scores, parts, config)
    without = bounds.pop("zeros")
    return {"without": without, **{f"gain_{name}": bound - without for name, bound in bounds.items()}}


def _fit(critic: nn.Module, scores: CriticScores, parts: tuple[Tensor, ...], config: InformationConfig) -> float:
    """Train a critic; the bound on the last part, at the epoch (the start included) with the best bound on the second."""
    train, validation, test = parts
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3, weight_decay=0.1)
    best, weights = (
        _bound(critic, scores, validation, config.batch),
        {k: v.clone() for k, v in critic.state_dict().items()},
    )
    for _ in range(config.epochs):
        critic.train()
        for rows in _full_batches(train[torch.randperm(len(train))], config.batch):
            loss = _nce(scores(rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if (bound := _bound(critic, scores, validation, config.batch)) > best:
            best, weights = bound, {k: v.clone() for k, v in critic.state_dict().items()}
    critic.load_state_dict(weights)
    return _bound(critic, scores, test, config.batch)


def _nce(scores: Tensor) -> Tensor:
    return F.cross_entropy(scores, torch.arange(len(scores)))


def _full_batches(rows: Tensor, size: int) -> list[Tensor]:
    """Batches of `size` rows; one of all rows where they are fewer."""
    return [part for part in rows.split(size) if len(part) == min(size, len(rows))]


@torch.no_grad()
def _bound(critic: nn.Module, scores: CriticScores, rows: Tensor, size: int) -> float:
    """log N - L_NCE, the mean over batches."""
    critic.eval()
    bounds = [torch.log(torch.tensor(float(len(part)))) - _nce(scores(part)) for part in _full_batches(rows, size)]
    return float(torch.stack(bounds).mean())
