"""Make the transfer set of a task: text without labels, for students to learn their teacher's answers on."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import pyarrow as pa

from filbert import config, data, device, files, masked, progress, rows, sources, tables, tasks, tracking
from filbert.augment import AugmentConfig, variants
from filbert.transfer import HeldOut, Kept, Texts, TransferConfig, as_rows, sentences, texts_of
from filbert.vectors import Vectors
from stages import run, scratch_of

SEED = 0


def transfer(
    task_name: str, prepared: Path, texts: Path, checkpoint: Path, vectors: Path, out: Path, counts: Path
) -> None:
    """Collect the transfer rows of the task TASK_NAME into the folder OUT: its own rows without labels in PREPARED, sentences of
    its TEXTS, and variants of its training rows, made with a masked language model (CHECKPOINT, unless params.yaml names
    another) and word VECTORS. Write how many rows were kept, and why others were not, to COUNTS."""
    task, settings = tasks.find(task_name), config.section("transfer", TransferConfig)
    augmenting = config.section("augment", AugmentConfig)
    table, given = rows.read_table(prepared / "train.arrow"), prepared / "unlabelled.arrow"
    held = [file for file in sorted(prepared.glob("*.arrow")) if file.stem not in ("train", "unlabelled")]
    held_out = HeldOut(
        chain.from_iterable(texts_of(rows.read_table(file), task) for file in held),
        settings.keep.shingle,
        task.symmetric,
    )
    kept = Kept(texts_of(table, task), held_out, settings.keep)
    with tracking.stage_run(
        "transfer",
        params={"transfer": settings.keep, "augment": augmenting},
        tags={"task": task_name},
        hashes={"rows": rows.digest(table)},
        scratch=scratch_of(out),
    ) as recorder:

        def collected() -> Iterator[Texts]:
            if given.exists():
                yield from kept.sample("unlabelled", lambda: texts_of(rows.read_table(given), task), any_length=True)
            for text in settings.of(task):
                yield from kept.sample(text.name, partial(_sentences, texts / text.name, text))
            if augmenting.variants:
                model = _masked(augmenting, checkpoint, table, task, scratch_of(out), recorder)
                training = progress.each("varied", texts_of(table, task), len(table))
                yield from kept.of("augmented", variants(training, model, Vectors(vectors), augmenting, SEED))

        with files.whole_folder(out) as making:
            count = rows.write_rows(as_rows(collected(), task), task, making / "transfer.arrow")
        files.write_json(counts, {"transfer": count, **kept.counts})
        recorder.metrics({"transfer": count, **{name.replace(" ", "_"): n for name, n in kept.counts.items()}})
    files.forget(scratch_of(out))


def _sentences(folder: Path, text: tasks.Task) -> Iterator[Texts]:
    """The sentences of a fetched text."""
    for row in tables.read(folder, text.train, text):
        yield from ((sentence,) for sentence in sentences(row[text.columns[0]]))


def _masked(
    augmenting: AugmentConfig, checkpoint: Path, table: pa.Table, task: tasks.Task, scratch: Path, recorder: tracking.Recorder
) -> masked.Masked | None:  # fmt: skip
    """The masked language model that params.yaml asks for."""
    if augmenting.masked_model:
        sources.fetch_files(augmenting.masked_model, sources.CHECKPOINT, scratch / "masked_model")
        return masked.load(scratch / "masked_model", device.pick())
    if not augmenting.head:
        progress.say(f"{task.name}: no masked language model: word vectors alone say which words fit")
        return None
    device.seed_everything(SEED)
    model = masked.load(checkpoint, device.pick())
    encoded = data.encode(table, task, model.tokenizer, config.section("encode", data.EncodeConfig))
    model.learn(encoded, augmenting.head, SEED, scratch, recorder)
    return model


if __name__ == "__main__":
    run(transfer)
