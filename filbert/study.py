"""What a method is given: the task, its rows, the teacher's words, a fresh student, and the training loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from filbert import fill, losses, students
from filbert.bert import FilbertForSequenceClassification
from filbert.cache import Cache, CacheConfig
from filbert.columns import of_task
from filbert.data import Batch, Encoded, Taught, joined
from filbert.device import seed_everything
from filbert.layerwise import Depth
from filbert.resume import weights_digest
from filbert.tasks import Kind, Task
from filbert.tracking import Recorder
from filbert.train import FitConfig, Fitted, fit, mean_loss, validate


def learns_from_transfer(method: ModuleType) -> bool:
    """Whether a method's students also learn from the transfer rows: it says so by `TRANSFER = True`."""
    return getattr(method, "TRANSFER", False)


@dataclass(frozen=True)
class Study:
    """One task and one seed, ready for a method. Test rows are not in it: no choice can see them."""

    task: Task
    train: Encoded
    validation: Encoded
    transfer: Encoded  # rows without labels; none, unless the method asks for words on them
    checkpoint: Path
    teacher: Path
    shape: students.StudentConfig
    depth: Depth
    cache: Cache
    asking: CacheConfig
    references: Path
    vectors: Path | None
    seed: int
    device: torch.device
    scratch: Path
    recorder: Recorder

    def student(self) -> FilbertForSequenceClassification:
        """A fresh student: layers of the checkpoint and a head drawn from the seed."""
        return self.student_of(students.encoder_for(self.task))

    def student_of(
        self, kind: type[students.Student], layers: Sequence[int] | None = None, **fields: Any
    ) -> students.Student:
        """A fresh student of another kind, or of other layers, the parts it adds drawn from the seed too; `fields` are of its
        configuration."""
        seed_everything(self.seed)
        shape = self.shape if layers is None else students.StudentConfig(tuple(layers))
        return students.new_student_of(kind, self.checkpoint, self.task, shape, **fields)

    def of_teacher(self, layers: Sequence[int]) -> FilbertForSequenceClassification:
        """A student cut from the fine-tuned teacher: some of its layers, with its head."""
        seed_everything(self.seed)
        return students.new_student(self.teacher, self.task, students.StudentConfig(tuple(layers)))

    def with_transfer(self) -> "Study":
        """The same study with the transfer rows among the training rows: they have no labels."""
        return replace(self, train=joined(self.train, self.transfer), transfer=self.transfer.part(np.arange(0)))

    def taught(self, columns: Sequence[str], *beside: Taught) -> Encoded:
        """The training rows, whose batches carry these columns of the teacher's words."""
        return self.taught_by(self.cache, columns, *beside)

    def taught_by(self, cache: Cache, columns: Sequence[str], *beside: Taught) -> Encoded:
        """The training rows, whose batches carry these columns of another teacher's words, and what they carried before."""
        real = {of_task(self.task.kind, column): column for column in columns}
        said = replace(cache.on(self.train, list(real)), called=real)
        return self.train.taught(*self.train.teachers, said, *beside)

    def width(self, column: str) -> int:
        """The width of a column of the teacher's words."""
        return self.cache.width(of_task(self.task.kind, column))

    def asked(self, model: nn.Module, columns: Sequence[str]) -> Cache:
        """A cache of what `model`, an earlier student, says of the training rows; it goes when the study ends.

        Raises:
            CacheError: it would grow over `cache.budget_gb`.
        """
        expected = replace(self.cache.expected, teacher=weights_digest(model))
        folder = self.scratch / f"words-{expected.teacher[:12]}"
        rows = {"idx": self.train.idx, "hash": self.train.hash, "row": np.arange(len(self.train))}

        def encode(part: pa.Table) -> Encoded:
            return self.train.part(part["row"].to_numpy())

        real = [of_task(self.task.kind, column) for column in columns]
        fill.fill(folder, model, pa.table(rows), encode, real, expected, self.asking, self.device)
        return Cache([folder], expected)

    def hard_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The task's own loss against the labels, of the rows that have one."""
        return losses.hard(self.task.kind, logits, batch.label)

    def learn_labels(self, student: nn.Module) -> Callable[[Batch], Tensor]:
        """A student's loss against the labels, batch by batch."""
        return lambda batch: self.hard_loss(students.ask(student, batch).logits, batch)

    def learn_distilled(self, student: nn.Module, temperature: float, soft: float) -> Callable[[Batch], Tensor]:
        """A student's distilled loss, batch by batch."""
        return lambda batch: self.distilled_loss(students.ask(student, batch).logits, batch, temperature, soft)

    def distilled_loss(self, logits: Tensor, batch: Batch, temperature: float, soft: float) -> Tensor:
        """`soft` of the distillation loss against the teacher's cached logits, the rest of the loss against the labels."""
        return soft * self.soft_loss(logits, batch, temperature) + (1 - soft) * self.hard_loss(logits, batch)

    def soft_loss(self, logits: Tensor, batch: Batch, temperature: float) -> Tensor:
        """The distillation loss against the teacher's cached logits; of tagged rows over their real pieces."""
        ours, theirs = self.real(logits, batch), self.real(batch.teacher["logits"], batch)
        return losses.SOFT[self.task.kind](ours, theirs, temperature)

    def real(self, values: Tensor, batch: Batch) -> Tensor:
        """What was said of each row [B, …]; of tagged rows [B, T, …] what was said of their real pieces [pieces, …]."""
        return values[batch.mask] if self.task.kind is Kind.TAGGING else values

    def fit_by_loss(
        self,
        student: nn.Module,
        loss: Callable[[Batch], Tensor],
        rows: Encoded,
        held_out: Encoded,
        config: FitConfig,
        phase: str,
    ) -> Fitted:
        """Train `student` for one phase; leave it with the weights whose loss on `held_out`, rows of training, was least."""

        def judge() -> dict[str, float]:
            return {"loss": mean_loss(student, loss, held_out, self.device)}

        return self.fit(student, loss, rows, config, phase, judge=judge)

    def fit(
        self,
        student: nn.Module,
        loss: Callable[[Batch], Tensor],
        rows: Encoded,
        config: FitConfig,
        phase: str,
        beside: nn.Module | None = None,
        validation: Encoded | None = None,
        window: tuple[int, int] | None = None,
        judge: Callable[[], dict[str, float]] | None = None,
    ) -> Fitted:
        """Train `student`, and what is `beside` it, for one phase, or the steps of it in `window`; leave them with the
        weights that scored best on the validation rows (which may be given as rows that carry more), or by `judge`."""
        scored = validation or self.validation
        return fit(
            nn.ModuleDict({"student": student, "beside": beside}) if beside is not None else student,
            loss,
            rows,
            judge or (lambda: validate(student, self.task, scored, self.device)),
            config,
            phase=phase,
            seed=self.seed,
            device=self.device,
            scratch=self.scratch,
            recorder=self.recorder,
            window=window,
        )
