"""Make variants of training rows: words replaced by words that fit in their place."""

from collections.abc import Iterable
from pathlib import Path

from filbert.data import arrow, tasks
from filbert.runtime import config, device, files, progress
from filbert.text.augment import AugmentConfig, augment_rows
from filbert.text.masked_lm import load_masked_lm
from filbert.text.transfer import Texts, row_texts, to_rows
from filbert.text.word_vectors import WordVectors
from filbert.tracking import run_recorder
from stages import OutFolder, run, scratch_of

SEED = 0


def augment(task_name: str, index: int, prepared: Path, masked_lm: Path, word_vectors: Path, out: OutFolder) -> None:
    """Make variants of the training rows in PREPARED that belong to partition INDEX, by the masked language model in the folder
    MASKED_LM, if there is one, and WORD_VECTORS, into the folder OUT."""
    task, train = tasks.find(task_name), arrow.read_table(prepared / "train.arrow")
    settings = config.section("augment", AugmentConfig).for_task(task, len(train))
    table = config.section("partitions", arrow.Partition).share(train, index)
    with run_recorder.stage_run(
        "augment",
        params={"augment": settings},
        tags={"task": task_name, "partition": str(index)},
        hashes={"rows": arrow.rows_digest(table)},
        scratch=scratch_of(out),
    ) as recorder:
        variants: Iterable[Texts] = ()
        if settings.variants:
            model = load_masked_lm(masked_lm, device.select_device()) if (masked_lm / "config.json").exists() else None
            rows = progress.track("augmented", row_texts(table, task), len(table))
            variants = augment_rows(rows, model, WordVectors(word_vectors), settings, SEED)
        with files.atomic_folder(out) as making:
            count = arrow.write_rows(to_rows(variants, task), task, making / "variants.arrow")
        recorder.metrics({"rows": len(table), "variants": count})
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(augment)
