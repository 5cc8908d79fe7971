"""Fine-tune the teacher of a task: an ordinary Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from filbert.data import arrow, batches, tasks
from filbert.models import checkpoints
from filbert.runtime import config, device, files
from filbert.tracking import run_recorder
from filbert.training import losses
from filbert.training.loop import TrainingConfig, fit, validate
from stages import run, scratch_of

SEED = 0  # one teacher per task: seeds are a dimension of students


@dataclass(frozen=True)
class TeacherConfig:
    training: TrainingConfig


def teach(task_name: str, prepared: Path, checkpoint: Path, out: Path) -> None:
    """Fine-tune CHECKPOINT on the task TASK_NAME with the rows in PREPARED; write the teacher to the folder OUT."""
    task, settings = tasks.find(task_name), config.section("teacher", TeacherConfig).training
    encoding = config.section("tokenizer", batches.TokenizerConfig)
    scratch, on = scratch_of(out), device.select_device()
    tokenizer = batches.load_tokenizer(checkpoint)
    table, train = batches.load_split(prepared, "train", task, tokenizer, encoding)
    validation = batches.load_split(prepared, "validation", task, tokenizer, encoding)[1]
    device.seed_everything(SEED)
    teacher = checkpoints.new_teacher(checkpoint, task)

    def loss(batch: batches.Batch) -> Tensor:
        return losses.task_loss(task.kind, checkpoints.forward_batch(teacher, batch).logits, batch.label)

    with run_recorder.stage_run(
        "teach",
        params={"training": settings, "tokenizer": encoding},
        tags={"task": task_name},
        hashes={"rows": arrow.rows_digest(table)},
        scratch=scratch,
    ) as recorder:
        recorder.dataset(table, prepared, "training")
        fit(teacher, loss, train, lambda: validate(teacher, task, validation, on), settings, phase="train",
            seed=SEED, device=on, scratch=scratch, recorder=recorder)  # fmt: skip
        with files.atomic_folder(out) as making:
            checkpoints.save_with_provenance(teacher, tokenizer, making, recorder)
    files.clear_scratch(scratch)


if __name__ == "__main__":
    run(teach)
