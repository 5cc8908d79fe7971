"""Make variants of training rows: words replaced by words that fit."""

from collections.abc import Iterable
from pathlib import Path

from filbert.data import arrow, tasks
from filbert.runtime import config, device, files, progress
from filbert.text import masked_lm
from filbert.text.augment import AugmentConfig, augment_rows
from filbert.text.transfer import Texts, row_texts, to_rows
from filbert.text.word_vectors import WordVectors
from filbert.tracking import recording
from stages import run, scratch_of

SEED = 0


def augment(task_name: str, part: int, prepared: Path, model: Path, vectors: Path, out: Path) -> None:
    """Vary the training rows in PREPARED that fall to PART, by the masked language model in the folder MODEL, if there is one, and
    word VECTORS, into the folder OUT."""
    task, settings = tasks.find(task_name), config.section("augment", AugmentConfig)
    table = config.section("parts", arrow.Partition).share(arrow.read_table(prepared / "train.arrow"), part)
    with recording.stage_run(
        "augment",
        params={"augment": settings},
        tags={"task": task_name, "part": str(part)},
        hashes={"rows": arrow.rows_digest(table)},
        scratch=scratch_of(out),
    ) as recorder:
        made: Iterable[Texts] = ()
        if settings.variants:
            asked = (
                masked_lm.load_masked_lm(model, device.select_device()) if (model / "config.json").exists() else None
            )
            training = progress.track("varied", row_texts(table, task), len(table))
            made = augment_rows(training, asked, WordVectors(vectors), settings, SEED)
        with files.atomic_folder(out) as making:
            count = arrow.write_rows(to_rows(made, task), task, making / "variants.arrow")
        recorder.metrics({"rows": len(table), "variants": count})
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(augment)
