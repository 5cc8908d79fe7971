"""BERT-of-Theseus (Xu et al. 2020, EMNLP, arXiv 2002.02925): the teacher's modules are replaced at random by compact ones.

The predecessor, the fine-tuned teacher, is cut into n modules of c layers; each has a successor of one layer. In training one
draw per module and batch decides which of the two the batch passes through (equations 3 and 4); the probability of replacing
rises (equation 6); the task's own loss is the only one. Everything but the successors is frozen, and inference runs them alone.

As in the official code the successors start as layers of the fine-tuned teacher, pooler and classifier stay the teacher's, and
a module that is not drawn has a gradient of zero, not none, so that Adam's moments decay. Ours: the successors need not start
as the bottom layers, the clipped norm counts trained parameters alone, and the schedule is in fractions of all steps. Against
it stand `finetune`, `kd` and `pkd` of the same shape, and the schedules `constant` and `anti`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from filbert import FilbertError
from filbert.data.batches import Batch
from filbert.methods.context import MethodContext
from filbert.models.bert import Encoder, FilbertForSequenceClassification
from filbert.runtime.config import Fraction, Range
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig, total_steps


@dataclass(frozen=True)
class Config:
    schedule: Literal["curriculum", "constant", "anti"]  # of the probability of replacing a module
    initial_probability: Annotated[float, Range(0, 1, above=True)]  # the paper's b; `constant` keeps it
    replacing_proportion: Fraction  # of all steps; afterwards the probability is 1: the successor is fine-tuned alone
    successor_layers: Literal[
        "student", "bottom"
    ]  # the teacher's layers that successors start as: student.layers, or the paper's
    train_head: bool  # whether pooler and classifier are trained, too; the official code keeps the teacher's
    training: TrainingConfig


def columns(layer_map: LayerMap, config: Config) -> tuple[str, ...]:
    """No cached output: the teacher is a part of the student while it trains."""
    return ()


def compress(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train successors in the place of the teacher's modules; the student is made of the successors.

    Raises:
        FilbertError: the teacher's layers do not divide into as many modules as the student has layers.
    """
    modules, layers = context.layer_map.student, context.layer_map.teacher
    if layers % modules:
        raise FilbertError(
            f"expected a number of student layers that divides the teacher's {layers}, got {modules}: set "
            "student.layers in params.yaml"
        )
    predecessor = context.cut_from_teacher(range(layers)).bert.encoder
    initial = range(modules) if config.successor_layers == "bottom" else context.shape.layers
    student = context.cut_from_teacher(initial).requires_grad_(False)
    successor = student.bert.encoder.requires_grad_(True)
    for head in filter(None, (student.bert.pooler, student.classifier)):
        head.requires_grad_(config.train_head)
    total = total_steps(context.train, config.training)
    encoder = TheseusEncoder(predecessor, successor, lambda step: replacing_rate(config, step, total))
    student.bert.encoder = encoder  # type: ignore[assignment]
    label_loss = context.label_loss(student)

    def loss(batch: Batch) -> Tensor:
        found, idle = label_loss(batch), [p.sum() for layer in encoder.left_out for p in layer.parameters()]
        return found + 0 * torch.stack(idle).sum() if idle else found  # a gradient of zero, not none

    context.fit(student, loss, context.train, config.training, "replace")
    student.bert.encoder = successor
    return student


def replacing_rate(config: Config, step: int, total: int) -> float:
    """The probability of replacing a module at a step (equation 6, section 3.3); it falls where the schedule is `anti`."""
    until = config.replacing_proportion * total
    if step >= until:
        return 1.0
    rising = config.initial_probability + (1 - config.initial_probability) * step / until
    return {"curriculum": rising, "constant": config.initial_probability, "anti": 1 - rising}[config.schedule]


class TheseusEncoder(nn.Module):
    """An encoder that draws each of its modules from predecessor and successor while it trains; evaluated, it is the successor.
    Several processes draw each for its share of a batch."""

    def __init__(self, predecessor: Encoder, successor: Encoder, rate: Callable[[int], float]):
        """One layer of `successor` stands for len(predecessor) / len(successor) layers of `predecessor`, which is frozen."""
        super().__init__()
        self.predecessor, self.successor, self.rate = predecessor.requires_grad_(False), successor, rate
        self.span = len(predecessor.layer) // len(successor.layer)
        self.left_out: list[nn.Module] = []  # the successors that were not drawn for the last batch
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # in the state, so that a killed phase resumes

    def forward(self, x: Tensor, mask: Tensor, first: bool = False) -> tuple[Tensor, ...]:
        """As `Encoder`: the state before and after each module, n + 1 of [B, T, D]; with `first` the last is the first token's."""
        if not self.training:
            return self.successor(x, mask, first)
        drawn = torch.rand(len(self.successor.layer)) < self.rate(int(self.step))
        self.step += 1
        self.left_out = [new for new, chosen in zip(self.successor.layer, drawn, strict=True) if not chosen]
        states = [x]
        for module, new in enumerate(self.successor.layer):
            layers = [new] if drawn[module] else self.predecessor.layer[module * self.span : (module + 1) * self.span]
            for number, layer in enumerate(layers, start=1):
                x = layer(x, mask, first and module + 1 == len(drawn) and number == len(layers))
            states.append(x)
        return tuple(states)
