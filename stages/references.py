"""Find for every training and validation row the training rows most like it."""

from pathlib import Path

from filbert.cache import retrieval
from filbert.data import arrow, batches, tasks
from filbert.runtime import config, files
from filbert.tracking import recording
from stages import run, scratch_of


def look_up(task_name: str, prepared: Path, checkpoint: Path, out: Path, control: Path) -> None:
    """Index the training rows in PREPARED by the tokens of CHECKPOINT's tokenizer; write the index and the references of
    training and validation rows to OUT, and what a reference's label alone would score on the test rows to CONTROL."""
    task, settings = tasks.find(task_name), config.section("references", retrieval.RetrievalConfig)
    encoding, tokenizer = config.section("encode", batches.TokenizerConfig), batches.load_tokenizer(checkpoint)
    names = sorted(file.stem for file in prepared.glob("*.arrow") if file.stem != "unlabelled")
    splits = {name: batches.load_split(prepared, name, task, tokenizer, encoding) for name in names}
    encoded, digest = {name: split[1] for name, split in splits.items()}, arrow.rows_digest(splits["train"][0])
    train = encoded["train"]
    with recording.stage_run(
        "references",
        params={"references": settings, "encode": encoding},
        tags={"task": task_name},
        hashes={"rows": digest},
        scratch=scratch_of(out),
    ) as recorder:
        index = retrieval.build_index(train)
        found = {name: retrieval.find_references(index, train, each, settings.most) for name, each in encoded.items()}
        scores = {
            name: retrieval.nearest_label_score(
                task, retrieval.neighbour_positions(found[name]), train.label, each.label
            )
            for name, each in encoded.items()
            if name != "train" and task.kind is not tasks.TaskKind.TAGGING
        }
        recorder.metrics({"neighbours": scores})
        with files.atomic_folder(out) as making:
            retrieval.save_references(making, index, {name: found[name] for name in ("train", "validation")})
        files.write_json(control, {"rows": digest, "neighbours": scores})
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(look_up)
