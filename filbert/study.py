"""What a method is given: the task, its rows, the teacher's words, a fresh student, and the training loop."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from filbert import losses, students
from filbert.bert import FilbertForSequenceClassification
from filbert.cache import Cache
from filbert.data import Batch, Encoded
from filbert.device import seed_everything
from filbert.tasks import Task
from filbert.tracking import Recorder
from filbert.train import FitConfig, Fitted, fit, validate


@dataclass(frozen=True)
class Study:
    """One task and one seed, ready for a method. Test rows are not in it: no choice can see them."""

    task: Task
    train: Encoded
    validation: Encoded
    checkpoint: Path
    shape: students.StudentConfig
    cache: Cache
    seed: int
    device: torch.device
    scratch: Path
    recorder: Recorder

    def student(self) -> FilbertForSequenceClassification:
        """A fresh student: layers of the checkpoint and a head drawn from the seed."""
        seed_everything(self.seed)
        return students.new_student(self.checkpoint, self.task, self.shape)

    def hard_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The task's own loss against the labels."""
        return losses.HARD[self.task.kind](logits, batch.label)

    def soft_loss(self, logits: Tensor, batch: Batch, temperature: float) -> Tensor:
        """The task's distillation loss against the teacher's cached logits."""
        return losses.SOFT[self.task.kind](logits, batch.teacher["logits"], temperature)

    def fit(
        self, model: nn.Module, loss: Callable[[Batch], Tensor], rows: Encoded, config: FitConfig, phase: str
    ) -> Fitted:
        """Train `model` for one phase and leave it with the weights that scored best on validation."""
        return fit(
            model,
            loss,
            rows,
            lambda: validate(model, self.task, self.validation, self.device),
            config,
            phase=phase,
            seed=self.seed,
            device=self.device,
            scratch=self.scratch,
            recorder=self.recorder,
        )
