"""Fine-tune the teacher of a task: an ordinary Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from filbert import FilbertError
from filbert.data import arrow, batches, tasks
from filbert.models import checkpoints
from filbert.runtime import config, device, files
from filbert.tracking import run_recorder
from filbert.training import losses
from filbert.training.loop import TrainingConfig, fit, section_for, validate
from stages import OutFolder, run, scratch_of


class TeacherError(FilbertError):
    """There is no teacher to choose."""


@dataclass(frozen=True)
class TeacherConfig:
    """One teacher per task: seeds are a dimension of students."""

    seeds: tuple[int, ...]  # a teacher is trained from each; the best on validation rows is kept
    training: TrainingConfig

    def __post_init__(self) -> None:
        if not self.seeds or (len(self.seeds) > 1 and not self.training.validations):
            raise TeacherError(
                f"expected a seed, and validations to choose by where there are several; got seeds {list(self.seeds)} and "
                f"{self.training.validations} validations"
            )


def teach(task_name: str, prepared: Path, checkpoint: Path, out: OutFolder) -> None:
    """Fine-tune CHECKPOINT on the task TASK_NAME with the rows in PREPARED; write the teacher to the folder OUT."""
    task = tasks.find(task_name)
    settings = section_for(task, "teacher", TeacherConfig)
    encoding = config.section("tokenizer", batches.TokenizerConfig)
    scratch, on = scratch_of(out), device.select_device()
    tokenizer = batches.load_tokenizer(checkpoint)
    table, train = batches.load_split(prepared, "train", task, tokenizer, encoding)
    validation = batches.load_split(prepared, "validation", task, tokenizer, encoding)[1]
    with run_recorder.stage_run(
        "teach",
        params={"training": settings.training, "seeds": settings.seeds, "tokenizer": encoding},
        tags={"task": task_name},
        hashes={"rows": arrow.rows_digest(table)},
        scratch=scratch,
    ) as recorder:
        recorder.dataset(table, prepared, "training")
        teachers = {
            seed: _train(checkpoint, task, train, validation, settings, seed, on, scratch, recorder)
            for seed in settings.seeds
        }
        chosen = max(teachers, key=lambda seed: teachers[seed][0])
        teacher = teachers[chosen][1]
        recorder.metrics({"seed": chosen})
        with files.atomic_folder(out) as making:
            checkpoints.save_with_provenance(teacher, tokenizer, making, recorder)
    files.clear_scratch(scratch)


def _train(
    checkpoint: Path, task: tasks.Task, train: batches.TokenizedDataset, validation: batches.TokenizedDataset,
    settings: TeacherConfig, seed: int, on: torch.device, scratch: Path, recorder: run_recorder.RunRecorder,
) -> tuple[float, PreTrainedModel]:  # fmt: skip
    """A teacher trained from one seed, and its best score on validation rows."""
    device.seed_everything(seed)
    teacher = checkpoints.new_teacher(checkpoint, task)

    def loss(batch: batches.Batch) -> Tensor:
        return losses.task_loss(
            task.kind, checkpoints.forward_batch(teacher, batch, logits_alone=True).logits, batch.label
        )

    phase = "train" if len(settings.seeds) == 1 else f"train-{seed}"
    fitted = fit(teacher, loss, train, lambda: validate(teacher, task, validation, on), settings.training, phase=phase,
                 seed=seed, device=on, scratch=scratch, recorder=recorder, validate_start=False)  # fmt: skip
    return fitted.best, teacher.cpu()


if __name__ == "__main__":
    run(teach)
