"""Find for every training and validation row the training rows that are most similar to it."""

from pathlib import Path

from filbert.cache import retrieval
from filbert.data import arrow, batches, tasks
from filbert.runtime import config, files
from filbert.tracking import run_recorder
from stages import OutFile, OutFolder, run, scratch_of


def references(task_name: str, prepared: Path, checkpoint: Path, out: OutFolder, control: OutFile) -> None:
    """Index the training rows in PREPARED by the tokens of CHECKPOINT's tokenizer; write the index and the references of
    training and validation rows to OUT, and the score that the nearest row's label alone has on the test rows to CONTROL."""
    task, settings = tasks.find(task_name), config.section("references", retrieval.RetrievalConfig)
    encoding, tokenizer = config.section("tokenizer", batches.TokenizerConfig), batches.load_tokenizer(checkpoint)
    names = arrow.split_names(prepared, "train", "test", "validation")
    splits = {name: batches.load_split(prepared, name, task, tokenizer, encoding) for name in names}
    rows, digest = {name: split[1] for name, split in splits.items()}, arrow.rows_digest(splits["train"][0])
    with run_recorder.stage_run(
        "references",
        params={"references": settings, "tokenizer": encoding},
        tags={"task": task_name},
        hashes={"rows": digest},
        scratch=scratch_of(out),
    ) as recorder:
        index = retrieval.build_index(rows["train"])
        found = {
            n: retrieval.find_references(index, rows["train"], split, settings.max_references)
            for n, split in rows.items()
        }
        scores = {
            name: retrieval.nearest_label_score(
                task, retrieval.neighbour_positions(found[name]), rows["train"].label, split.label
            )
            for name, split in rows.items()
            if name != "train" and task.kind is not tasks.TaskKind.TAGGING
        }
        recorder.metrics({"neighbours": scores})
        with files.atomic_folder(out) as making:
            retrieval.save_references(making, index, {name: found[name] for name in ("train", "validation")})
        files.write_json(control, {"rows": digest, "neighbours": scores})
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(references)
