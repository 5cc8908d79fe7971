"""Make the transfer set of a task: text without labels, for students to learn their teacher's answers on."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from filbert.data import arrow, row_validation, tasks
from filbert.runtime import config, files
from filbert.text.transfer import (
    FilterConfig,
    HeldOutRows,
    Texts,
    TransferFilter,
    row_texts,
    split_sentences,
    to_rows,
)
from filbert.tracking import run_recorder
from stages import OutFile, OutFolder, run, scratch_of


def transfer(task_name: str, prepared: Path, texts: Path, augmented: Path, out: OutFolder, counts: OutFile) -> None:
    """Collect the transfer rows of the task TASK_NAME into the folder OUT: its own rows without labels in PREPARED, sentences of
    its TEXTS, and the variants of its training rows in AUGMENTED. Write how many rows were kept, and why others were not, to
    COUNTS."""
    task, settings = tasks.find(task_name), config.section("transfer", FilterConfig)
    variants_in = config.section("partitions", arrow.Partition).folders(augmented)
    table, given = arrow.read_table(prepared / "train.arrow"), prepared / "unlabelled.arrow"
    held = arrow.split_names(prepared, "test", "validation")
    held_out = HeldOutRows(
        chain.from_iterable(row_texts(arrow.read_table(prepared / f"{name}.arrow"), task) for name in held),
        settings.shingle,
        task.symmetric,
    )
    kept = TransferFilter(row_texts(table, task), held_out, settings)
    with run_recorder.stage_run(
        "transfer",
        params={"transfer": settings},
        tags={"task": task_name},
        hashes={"rows": arrow.rows_digest(table)},
        scratch=scratch_of(out),
    ) as recorder:

        def collected() -> Iterator[Texts]:
            if given.exists():
                yield from kept.sample("unlabelled", lambda: row_texts(arrow.read_table(given), task), any_length=True)
            for text in tasks.transfer_texts(task):
                yield from kept.sample(text.name, partial(_sentences, texts / text.name, text))
            for folder in variants_in:
                yield from kept.filter_all("augmented", row_texts(arrow.read_table(folder / "variants.arrow"), task))

        with files.atomic_folder(out) as making:
            count = arrow.write_rows(to_rows(collected(), task), task, making / "transfer.arrow")
        files.write_json(counts, {"transfer": count, **kept.counts})
        recorder.metrics({"transfer": count, **kept.counts})
    files.clear_scratch(scratch_of(out))


def _sentences(folder: Path, text: tasks.Task) -> Iterator[Texts]:
    """The sentences of a fetched text."""
    for row in row_validation.read_rows(folder, text.train, text):
        yield from ((sentence,) for sentence in split_sentences(row[text.columns[0]]))


if __name__ == "__main__":
    run(transfer)
