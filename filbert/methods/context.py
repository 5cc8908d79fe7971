"""What a method is given: the task's rows, the teacher's cached targets, fresh students, losses, and the training loop."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filbert import FilbertError
from filbert.cache import build
from filbert.cache.teacher_cache import CacheConfig, TeacherCache
from filbert.data.arrow import evenly_spaced
from filbert.data.batches import Batch, TargetSource, TokenizedDataset, concatenate, load_tokenizer
from filbert.data.tasks import Task, TaskKind
from filbert.models import checkpoints
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.intermediate_outputs import column_for_task
from filbert.runtime.device import seed_everything
from filbert.tracking.run_recorder import RunRecorder
from filbert.training import losses
from filbert.training.layerwise import LayerMap
from filbert.training.loop import Loss, TrainingConfig, TrainingResult, fit, mean_loss, validate
from filbert.training.optimizer import Moments
from filbert.training.resume import weights_digest


@dataclass(frozen=True)
class MethodContext:
    """One task and one seed, ready for a method. It holds no test rows: no choice can depend on them."""

    task: Task
    train: TokenizedDataset
    validation: TokenizedDataset
    transfer: TokenizedDataset  # rows without labels; empty unless the method's settings say `transfer: true`
    checkpoint: Path  # the pretrained encoder that students start from
    teacher: Path
    shape: checkpoints.StudentConfig
    layer_map: LayerMap
    cache: TeacherCache
    cache_config: CacheConfig
    references: Path
    word_vectors: Path | None
    seed: int
    device: torch.device
    scratch: Path
    recorder: RunRecorder
    start: Path | None = None  # a pretrained student in the checkpoint's place, whose tokens the rows have

    def new_student(self) -> FilbertForSequenceClassification:
        """A fresh student: layers of the checkpoint and a head drawn from the seed."""
        return self.new_student_of_class(checkpoints.encoder_class(self.task))

    def new_student_of_class(
        self, kind: type[checkpoints.Student], layers: Sequence[int] | None = None, **fields: Any
    ) -> checkpoints.Student:
        """A fresh student of another class or of other layers; the parts it adds are drawn from the seed, too.

        Args:
            fields: of its configuration.
        """
        seed_everything(self.seed)
        shape = self.shape if layers is None else checkpoints.StudentConfig(tuple(layers))
        return checkpoints.new_student_of_class(kind, self.checkpoint, self.task, shape, **fields)

    def cut_from_teacher(self, layers: Sequence[int]) -> FilbertForSequenceClassification:
        """A student cut from the fine-tuned teacher: some of its layers, with its head.

        Raises:
            FilbertError: the rows' tokens are of another vocabulary.
        """
        self.check_vocabulary()
        seed_everything(self.seed)
        return checkpoints.new_student(self.teacher, self.task, checkpoints.StudentConfig(tuple(layers)))

    def check_vocabulary(self) -> None:
        """Raises FilbertError where rows are of another vocabulary than the teacher's, whose embeddings a method is to read."""
        if self.start and load_tokenizer(self.start).get_vocab() != load_tokenizer(self.teacher).get_vocab():
            raise FilbertError(
                f"{self.start}: expected the teacher's vocabulary, for this method reads the teacher's embeddings; got another: "
                f"take a start with the vocabulary of {self.teacher}, or a method such as kd"
            )

    def with_transfer(self, labelled: float = 0.0) -> "MethodContext":
        """The same context with the transfer rows, which have no labels, appended to the training rows; these are repeated until
        they are at least the share `labelled`, below 1, of all."""
        times = max(1, math.ceil(len(self.transfer) * labelled / (1 - labelled) / len(self.train)))
        rows = concatenate(*[self.train] * times, self.transfer)
        return replace(self, train=rows, transfer=self.transfer.select(np.arange(0)))

    def with_targets(self, columns: Sequence[str], *more: TargetSource) -> TokenizedDataset:
        """The training rows, whose batches carry these columns of the teacher's cache (and other targets)."""
        return self.with_targets_of(self.cache, columns, *more)

    def with_targets_of(self, cache: TeacherCache, columns: Sequence[str], *more: TargetSource) -> TokenizedDataset:
        """The training rows with these columns of some model's cache, beside the targets that they already carry."""
        stored = {column_for_task(self.task.kind, column): column for column in columns}
        targets = replace(cache.on(self.train, list(stored)), aliases=stored)
        return self.train.with_targets(*self.train.target_sources, targets, *more)

    def width(self, column: str) -> int:
        """The width of a column of the teacher's cache: classes, hidden size or heads."""
        return self.cache.width(column_for_task(self.task.kind, column))

    def cache_predictions(self, model: nn.Module, columns: Sequence[str]) -> TeacherCache:
        """A temporary cache of what `model`, an earlier student, predicts for the training rows; of the teacher itself the
        teacher's cache, if it has these columns.

        Raises:
            CacheError: it would grow over `cache.budget_gb`.
        """
        stored = [column_for_task(self.task.kind, column) for column in columns]
        digest, layers = weights_digest(model), range(self.layer_map.teacher)
        if self.cache.has(self.train, stored) and digest == weights_digest(self.cut_from_teacher(layers)):
            if count := self.cache_config.verify_rows:
                few = self.train.select(evenly_spaced(len(self.train), count))
                self.cache.verify(few, stored, model, self.cache_config, self.device)
            return self.cache
        expected = replace(self.cache.expected, teacher=digest)
        folder = self.scratch / f"predictions-{expected.teacher[:12]}"
        rows = {"idx": self.train.idx, "hash": self.train.hash, "row": np.arange(len(self.train))}

        def tokenize(part: pa.Table) -> TokenizedDataset:
            return self.train.select(part["row"].to_numpy())

        build.build_cache(folder, model, pa.table(rows), tokenize, stored, expected, self.cache_config, self.device)
        return TeacherCache([folder], expected)

    def hard_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The task's own loss against the labels, over the rows that have one: a scalar."""
        return losses.task_loss(self.task.kind, logits, batch.label)

    def soft_loss(self, logits: Tensor, batch: Batch, temperature: float) -> Tensor:
        """T² KL(teacher ‖ student) of logits softened by T (for a regression the squared error, for several labels the binary
        cross entropy of each): a scalar."""
        ours, teachers = self.drop_padding(logits, batch), self.drop_padding(batch.targets["logits"], batch)
        return losses.DISTILLATION_LOSSES[self.task.kind](ours, teachers, temperature)

    def kd_loss(self, logits: Tensor, batch: Batch, temperature: float, teacher_weight: float) -> Tensor:
        """w T² KL + (1 - w) CE (Hinton, Vinyals, Dean 2015, section 2), w the weight of the teacher's cached logits."""
        soft, hard = self.soft_loss(logits, batch, temperature), self.hard_loss(logits, batch)
        return teacher_weight * soft + (1 - teacher_weight) * hard

    def representation_loss(self, read: Tensor, batch: Batch) -> Tensor:
        """The squared error of what a student's head reads to what its teacher's does (XtremeDistil, section 3.3)."""
        ours, teachers = (self.drop_padding(values, batch) for values in (read, batch.targets["pooled"]))
        return F.mse_loss(ours.float(), teachers.float())

    def label_loss(self, student: nn.Module) -> Loss:
        """The loss of a student against the labels, as `fit` takes it."""
        return lambda batch: self.hard_loss(checkpoints.forward_batch(student, batch, logits_alone=True).logits, batch)

    def prediction_loss(self, student: nn.Module, temperature: float, teacher_weight: float) -> Loss:
        """`kd_loss` of a student's logits, as `fit` takes it."""
        return lambda batch: self.kd_loss(
            checkpoints.forward_batch(student, batch, logits_alone=True).logits, batch, temperature, teacher_weight
        )

    def drop_padding(self, values: Tensor, batch: Batch) -> Tensor:
        """Outputs per row [B, …] as they are; of a tagging task [B, T, …] only those of real tokens: [tokens, …]."""
        return values[batch.mask] if self.task.kind is TaskKind.TAGGING else values

    def fit_by_loss(
        self, student: nn.Module, loss: Loss, rows: TokenizedDataset, held_out: TokenizedDataset, config: TrainingConfig, phase: str
    ) -> TrainingResult:  # fmt: skip
        """Train a student for one phase and keep the weights with the lowest loss on `held_out`, some training rows."""

        def scores() -> dict[str, float]:
            return {"loss": mean_loss(student, loss, held_out, self.device)}

        return self.fit(student, loss, rows, config, phase, scores=scores)

    def fit(
        self,
        student: nn.Module,
        loss: Loss,
        rows: TokenizedDataset,
        config: TrainingConfig,
        phase: str,
        extra_modules: nn.Module | None = None,
        validation: TokenizedDataset | None = None,
        step_range: tuple[int, int] | None = None,
        moments: Moments | None = None,
        scores: Callable[[], dict[str, float]] | None = None,
        validate_start: bool = True,
    ) -> TrainingResult:
        """Train a student for one phase and keep the weights with the best validation score.

        Args:
            extra_modules: trained and resumed with the student.
            validation: the validation rows where they must carry targets (references, say).
            step_range: only these steps of the phase, first to before last.
            moments: AdamW's state to begin with, by the student's parameters.
            scores: what chooses the best weights instead of the validation score.
            validate_start: whether the weights before the first step may be the best; not where the head is new.
        """
        scored = validation or self.validation
        model = student if extra_modules is None else nn.ModuleDict({"student": student, "extra": extra_modules})
        prefix = "" if extra_modules is None else "student."
        fitted = fit(
            model,
            loss,
            rows,
            scores or (lambda: validate(student, self.task, scored, self.device)),
            config,
            phase=phase,
            seed=self.seed,
            device=self.device,
            scratch=self.scratch,
            recorder=self.recorder,
            step_range=step_range,
            validate_start=validate_start,
            moments={prefix + name: state for name, state in (moments or {}).items()},
        )
        return replace(fitted, moments={n.removeprefix(prefix): state for n, state in fitted.moments.items()})
