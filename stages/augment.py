"""Make variants of training rows: words replaced by words that fit."""

from collections.abc import Iterable
from pathlib import Path

from filbert import config, device, files, masked, progress, rows, tasks, tracking
from filbert.augment import AugmentConfig, variants
from filbert.transfer import Texts, as_rows, texts_of
from filbert.vectors import Vectors
from stages import run, scratch_of

SEED = 0


def augment(task_name: str, part: int, prepared: Path, model: Path, vectors: Path, out: Path) -> None:
    """Vary the training rows in PREPARED that fall to PART, by the masked language model in the folder MODEL, if there is one, and
    word VECTORS, into the folder OUT."""
    task, settings = tasks.find(task_name), config.section("augment", AugmentConfig)
    table = config.section("parts", rows.Parts).share(rows.read_table(prepared / "train.arrow"), part)
    with tracking.stage_run(
        "augment",
        params={"augment": settings},
        tags={"task": task_name, "part": str(part)},
        hashes={"rows": rows.digest(table)},
        scratch=scratch_of(out),
    ) as recorder:
        made: Iterable[Texts] = ()
        if settings.variants:
            asked = masked.load(model, device.pick()) if (model / "config.json").exists() else None
            training = progress.each("varied", texts_of(table, task), len(table))
            made = variants(training, asked, Vectors(vectors), settings, SEED)
        with files.whole_folder(out) as making:
            count = rows.write_rows(as_rows(made, task), task, making / "variants.arrow")
        recorder.metrics({"rows": len(table), "variants": count})
    files.forget(scratch_of(out))


if __name__ == "__main__":
    run(augment)
