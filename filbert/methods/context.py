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

from filbert.cache import build
from filbert.cache.read import CacheConfig, TeacherCache
from filbert.data.batches import Batch, TargetSource, TokenizedDataset, concatenate
from filbert.data.tasks import Task, TaskKind
from filbert.models import checkpoints
from filbert.models.activations import column_for_task
from filbert.models.bert import FilbertForSequenceClassification
from filbert.runtime.device import seed_everything
from filbert.tracking.recording import RunRecorder
from filbert.training import losses
from filbert.training.checkpoint import weights_digest
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig, TrainingResult, fit, mean_loss, validate


def learns_from_transfer(method: ModuleType) -> bool:
    """Whether a method's students also learn from the transfer rows: it says so by `TRANSFER = True`."""
    return getattr(method, "TRANSFER", False)


@dataclass(frozen=True)
class MethodContext:
    """One task and one seed, ready for a method. Test rows are not in it: no choice can see them."""

    task: Task
    train: TokenizedDataset
    validation: TokenizedDataset
    transfer: TokenizedDataset  # rows without labels; none, unless the method asks for words on them
    checkpoint: Path
    teacher: Path
    shape: checkpoints.StudentConfig
    depth: LayerMap
    cache: TeacherCache
    asking: CacheConfig
    references: Path
    vectors: Path | None
    seed: int
    device: torch.device
    scratch: Path
    recorder: RunRecorder

    def student(self) -> FilbertForSequenceClassification:
        """A fresh student: layers of the checkpoint and a head drawn from the seed."""
        return self.student_of(checkpoints.encoder_class(self.task))

    def student_of(
        self, kind: type[checkpoints.Student], layers: Sequence[int] | None = None, **fields: Any
    ) -> checkpoints.Student:
        """A fresh student of another kind, or of other layers, the parts it adds drawn from the seed too; `fields` are of its
        configuration."""
        seed_everything(self.seed)
        shape = self.shape if layers is None else checkpoints.StudentConfig(tuple(layers))
        return checkpoints.new_student_of_class(kind, self.checkpoint, self.task, shape, **fields)

    def cut_from_teacher(self, layers: Sequence[int]) -> FilbertForSequenceClassification:
        """A student cut from the fine-tuned teacher: some of its layers, with its head."""
        seed_everything(self.seed)
        return checkpoints.new_student(self.teacher, self.task, checkpoints.StudentConfig(tuple(layers)))

    def with_transfer(self) -> "MethodContext":
        """The same study with the transfer rows among the training rows: they have no labels."""
        return replace(self, train=concatenate(self.train, self.transfer), transfer=self.transfer.part(np.arange(0)))

    def with_targets(self, columns: Sequence[str], *beside: TargetSource) -> TokenizedDataset:
        """The training rows, whose batches carry these columns of the teacher's words."""
        return self.with_targets_of(self.cache, columns, *beside)

    def with_targets_of(self, cache: TeacherCache, columns: Sequence[str], *beside: TargetSource) -> TokenizedDataset:
        """The training rows, whose batches carry these columns of another teacher's words, and what they carried before."""
        real = {column_for_task(self.task.kind, column): column for column in columns}
        said = replace(cache.on(self.train, list(real)), aliases=real)
        return self.train.with_targets(*self.train.target_sources, said, *beside)

    def width(self, column: str) -> int:
        """The width of a column of the teacher's words."""
        return self.cache.width(column_for_task(self.task.kind, column))

    def cache_predictions(self, model: nn.Module, columns: Sequence[str]) -> TeacherCache:
        """A cache of what `model`, an earlier student, says of the training rows; it goes when the study ends.

        Raises:
            CacheError: it would grow over `cache.budget_gb`.
        """
        expected = replace(self.cache.expected, teacher=weights_digest(model))
        folder = self.scratch / f"words-{expected.teacher[:12]}"
        rows = {"idx": self.train.idx, "hash": self.train.hash, "row": np.arange(len(self.train))}

        def encode(part: pa.Table) -> TokenizedDataset:
            return self.train.part(part["row"].to_numpy())

        real = [column_for_task(self.task.kind, column) for column in columns]
        build.build_cache(folder, model, pa.table(rows), encode, real, expected, self.asking, self.device)
        return TeacherCache([folder], expected)

    def hard_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The task's own loss against the labels, of the rows that have one."""
        return losses.task_loss(self.task.kind, logits, batch.label)

    def label_loss(self, student: nn.Module) -> Callable[[Batch], Tensor]:
        """A student's loss against the labels, batch by batch."""
        return lambda batch: self.hard_loss(checkpoints.forward_batch(student, batch).logits, batch)

    def kd_loss(self, student: nn.Module, temperature: float, soft: float) -> Callable[[Batch], Tensor]:
        """A student's distilled loss, batch by batch."""
        return lambda batch: self.distillation_loss(
            checkpoints.forward_batch(student, batch).logits, batch, temperature, soft
        )

    def distillation_loss(self, logits: Tensor, batch: Batch, temperature: float, soft: float) -> Tensor:
        """`soft` of the distillation loss against the teacher's cached logits, the rest of the loss against the labels."""
        return soft * self.soft_loss(logits, batch, temperature) + (1 - soft) * self.hard_loss(logits, batch)

    def soft_loss(self, logits: Tensor, batch: Batch, temperature: float) -> Tensor:
        """The distillation loss against the teacher's cached logits; of tagged rows over their real tokens."""
        ours, theirs = self.drop_padding(logits, batch), self.drop_padding(batch.targets["logits"], batch)
        return losses.DISTILLATION_LOSSES[self.task.kind](ours, theirs, temperature)

    def drop_padding(self, values: Tensor, batch: Batch) -> Tensor:
        """What was said of each row [B, …]; of tagged rows [B, T, …] what was said of their real tokens [tokens, …]."""
        return values[batch.mask] if self.task.kind is TaskKind.TAGGING else values

    def fit_by_loss(
        self,
        student: nn.Module,
        loss: Callable[[Batch], Tensor],
        rows: TokenizedDataset,
        held_out: TokenizedDataset,
        config: TrainingConfig,
        phase: str,
    ) -> TrainingResult:
        """Train `student` for one phase; leave it with the weights whose loss on `held_out`, rows of training, was least."""

        def judge() -> dict[str, float]:
            return {"loss": mean_loss(student, loss, held_out, self.device)}

        return self.fit(student, loss, rows, config, phase, judge=judge)

    def fit(
        self,
        student: nn.Module,
        loss: Callable[[Batch], Tensor],
        rows: TokenizedDataset,
        config: TrainingConfig,
        phase: str,
        beside: nn.Module | None = None,
        validation: TokenizedDataset | None = None,
        window: tuple[int, int] | None = None,
        judge: Callable[[], dict[str, float]] | None = None,
    ) -> TrainingResult:
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
