"""Make the masked language model that proposes words for augmentation: fetched, or the checkpoint with a head trained on the
task's text.
"""

from pathlib import Path

from filbert.data import arrow, batches, sources, tasks
from filbert.models import checkpoints
from filbert.runtime import config, device, files, progress
from filbert.text.augment import AugmentConfig
from filbert.text.masked_lm import load_masked_lm
from filbert.tracking import run_recorder
from stages import OutFolder, run, scratch_of

SEED = 0


def masked_lm(task_name: str, prepared: Path, checkpoint: Path, out: OutFolder) -> None:
    """Put the masked language model of the settings `augment` into the folder OUT: another checkpoint that they name, or CHECKPOINT
    with a head trained on the training rows in PREPARED; none where nothing is augmented or no head is to be trained."""
    task, scratch, table = tasks.find(task_name), scratch_of(out), arrow.read_table(prepared / "train.arrow")
    settings = config.section("augment", AugmentConfig).for_task(task, len(table))
    with (
        run_recorder.stage_run(
            "masked_lm",
            params={"augment": settings},
            tags={"task": task_name},
            hashes={"rows": arrow.rows_digest(table), "checkpoint": files.weights_hash(checkpoint)[:12]},
            scratch=scratch,
        ) as recorder,
        files.atomic_folder(out) as making,
    ):
        if settings.variants and settings.masked_lm:
            sources.fetch_files(settings.masked_lm, sources.CHECKPOINT, making)
        elif settings.variants and settings.training:
            device.seed_everything(SEED)
            model = load_masked_lm(checkpoint, device.select_device())
            rows = batches.tokenize(table, task, model.tokenizer, config.section("tokenizer", batches.TokenizerConfig))
            model.train_head(rows, settings.training, SEED, scratch, recorder)
            checkpoints.save_with_provenance(model.model, model.tokenizer, making, recorder)
        else:
            why = (
                "word vectors alone propose words"
                if settings.variants
                else "augment.variants is 0, or this task is not augmented (augment.max_rows, beside_texts; teacher_columns)"
            )
            progress.log(f"{task_name}: no masked language model: {why}")
            files.write_text(making / "NONE", f"{why}\n")
    files.clear_scratch(scratch)


if __name__ == "__main__":
    run(masked_lm)
