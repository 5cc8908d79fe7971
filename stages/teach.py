"""Fine-tune the teacher of a task: an ordinary Hugging Face folder."""

from pathlib import Path

from torch import Tensor

from filbert import config, data, device, files, losses, rows, students, tasks, tracking
from filbert.train import FitConfig, fit, validate
from stages import run, scratch_of

SEED = 0  # one teacher per task: seeds are a dimension of students


def teach(task_name: str, prepared: Path, checkpoint: Path, out: Path) -> None:
    """Fine-tune CHECKPOINT on the task TASK_NAME with the rows in PREPARED; write the teacher to the folder OUT."""
    task, settings = tasks.find(task_name), config.section("teach", FitConfig)
    encoding = config.section("encode", data.EncodeConfig)
    scratch, on = scratch_of(out), device.pick()
    tokenizer = data.load_tokenizer(checkpoint)
    table, train = data.open_split(prepared, "train", task, tokenizer, encoding)
    validation = data.open_split(prepared, "validation", task, tokenizer, encoding)[1]
    device.seed_everything(SEED)
    teacher = students.new_teacher(checkpoint, task)

    def loss(batch: data.Batch) -> Tensor:
        return losses.hard(task.kind, students.ask(teacher, batch).logits, batch.label)

    with tracking.stage_run(
        "teach",
        params={"fit": settings, "encode": encoding},
        tags={"task": task_name},
        hashes={"rows": rows.digest(table)},
        scratch=scratch,
    ) as recorder:
        recorder.dataset(table, prepared, "training")
        fit(teacher, loss, train, lambda: validate(teacher, task, validation, on), settings, phase="train",
            seed=SEED, device=on, scratch=scratch, recorder=recorder)  # fmt: skip
        with files.whole_folder(out) as making:
            students.publish(teacher, tokenizer, making, recorder)
    files.forget(scratch)


if __name__ == "__main__":
    run(teach)
