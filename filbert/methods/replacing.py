"""Replacing the teacher's modules by compact ones while they train: what `theseus` and its controls share.

BERT-of-Theseus (Xu et al. 2020, arXiv 2002.02925, section 3): the predecessor, the fine-tuned teacher, is cut into n modules
of c layers; each has a successor of one layer. One draw per module and batch decides which of the two the batch goes through
(equations 3 and 4); the task's own loss is the only one. All but the successors is frozen, and inference runs them alone.
As in the official code the successors start as layers of the fine-tuned teacher, pooler and classifier stay the teacher's, and
a module that is not drawn has a gradient of zero, not none, so that Adam's moments decay. Not as there: the successors need not
start as the bottom layers, the norm that is clipped counts what is trained alone, and the schedule is in fractions of all steps.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from filbert import FilbertError
from filbert.data.batches import Batch
from filbert.methods.context import MethodContext
from filbert.models.bert import Encoder, FilbertForSequenceClassification
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig, total_steps


@dataclass(frozen=True)
class Config:
    schedule: Literal["curriculum", "constant", "anti"]  # of the probability of replacing a module
    start: float  # where that probability starts (the paper's b); `constant` keeps it
    until: float  # fraction of all steps after which it is 1: from there on the successor is fine-tuned alone
    initial: Literal["bottom", "named"]  # the teacher's layers that the successors start as; `named` by student.layers
    train_head: bool  # whether pooler and classifier are trained too; the official code keeps the teacher's
    fit: TrainingConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """Nothing: the teacher is in the student while it trains."""
    return ()


def replace_modules(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train successors of the teacher's modules in their place; the student is what they make without it.

    Raises:
        FilbertError: the teacher's layers do not divide into as many modules as the student has layers.
    """
    modules, layers = study.depth.student, study.depth.teacher
    if layers % modules:
        raise FilbertError(
            f"expected a number of student layers that divides the teacher's {layers}, got {modules}: set "
            "student.layers in params.yaml"
        )
    predecessor = study.cut_from_teacher(range(layers)).bert.encoder
    initial = range(modules) if config.initial == "bottom" else study.shape.layers
    student = study.cut_from_teacher(initial).requires_grad_(False)
    successor = student.bert.encoder.requires_grad_(True)
    for head in filter(None, (student.bert.pooler, student.classifier)):
        head.requires_grad_(config.train_head)
    total = total_steps(study.train, config.fit)
    student.bert.encoder = TheseusEncoder(predecessor, successor, lambda step: replacing_rate(config, step, total))  # type: ignore[assignment]
    labels, trained = (
        study.label_loss(student),
        [parameter for parameter in student.parameters() if parameter.requires_grad],
    )

    def loss(batch: Batch) -> Tensor:
        idle = 0 * torch.stack([parameter.sum() for parameter in trained]).sum()
        return labels(batch) + idle

    study.fit(student, loss, study.train, config.fit, "replace")
    student.bert.encoder = successor
    return student


def replacing_rate(config: Config, step: int, total: int) -> float:
    """The probability of replacing a module at a step: equation 6 and section 3.3, its fall where `anti`."""
    until = config.until * total
    if step >= until:
        return 1.0
    rising = config.start + (1 - config.start) * step / until
    return {"curriculum": rising, "constant": config.start, "anti": 1 - rising}[config.schedule]


class TheseusEncoder(nn.Module):
    """An encoder whose modules are, while it trains, drawn from two; evaluated, it is its successor."""

    def __init__(self, predecessor: Encoder, successor: Encoder, rate: Callable[[int], float]):
        """Take one layer of `successor` for len(predecessor) / len(successor) layers of `predecessor`, which is frozen."""
        super().__init__()
        self.predecessor, self.successor, self.rate = predecessor.requires_grad_(False), successor, rate
        self.span = len(predecessor.layer) // len(successor.layer)
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # in the state, so that a killed phase resumes

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """As `Encoder`: the state before and after each module, n + 1 of [B, T, D]."""
        if not self.training:
            return self.successor(x, mask)
        drawn = torch.rand(len(self.successor.layer)) < self.rate(int(self.step))
        self.step += 1
        states = [x]
        for module, new in enumerate(self.successor.layer):
            old = self.predecessor.layer[module * self.span : (module + 1) * self.span]
            for layer in [new] if drawn[module] else old:
                x = layer(x, mask)
            states.append(x)
        return tuple(states)
