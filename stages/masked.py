"""Make the masked language model that says which words fit: fetched, or the checkpoint with a head trained on the task's text."""

from pathlib import Path

from filbert import config, data, device, files, masked, progress, rows, sources, students, tasks, tracking
from filbert.augment import AugmentConfig
from stages import run, scratch_of

SEED = 0


def masked_model(task_name: str, prepared: Path, checkpoint: Path, out: Path) -> None:
    """Put the model that params.yaml describes under `augment` into the folder OUT: another one that it names, or CHECKPOINT with
    a head trained on the training rows in PREPARED; none where nothing is augmented or no head is to be trained."""
    task, settings, scratch = tasks.find(task_name), config.section("augment", AugmentConfig), scratch_of(out)
    table = rows.read_table(prepared / "train.arrow")
    with (
        tracking.stage_run(
            "masked",
            params={"augment": settings},
            tags={"task": task_name},
            hashes={"rows": rows.digest(table), "checkpoint": files.weights_hash(checkpoint)[:12]},
            scratch=scratch,
        ) as recorder,
        files.whole_folder(out) as making,
    ):
        if settings.variants and settings.masked_model:
            sources.fetch_files(settings.masked_model, sources.CHECKPOINT, making)
        elif settings.variants and settings.head:
            device.seed_everything(SEED)
            model = masked.load(checkpoint, device.pick())
            encoded = data.encode(table, task, model.tokenizer, config.section("encode", data.EncodeConfig))
            model.learn(encoded, settings.head, SEED, scratch, recorder)
            students.publish(model.model, model.tokenizer, making, recorder)
        else:
            why = "word vectors alone say which words fit" if settings.variants else "augment.variants is 0"
            progress.say(f"{task_name}: no masked language model: {why}")
            files.write_text(making / "NONE", f"{why}\n")
    files.forget(scratch)


if __name__ == "__main__":
    run(masked_model)
