"""Find for every training and validation row the training rows most like it."""

from pathlib import Path

from filbert import config, data, files, references, rows, tasks, tracking
from stages import run, scratch_of


def look_up(task_name: str, prepared: Path, checkpoint: Path, out: Path, control: Path) -> None:
    """Index the training rows in PREPARED by the pieces of CHECKPOINT's tokenizer; write the index and the references of
    training and validation rows to OUT, and what a reference's label alone would score on the test rows to CONTROL."""
    task, settings = tasks.find(task_name), config.section("references", references.ReferencesConfig)
    encoding, tokenizer = config.section("encode", data.EncodeConfig), data.load_tokenizer(checkpoint)
    names = sorted(file.stem for file in prepared.glob("*.arrow") if file.stem != "unlabelled")
    splits = {name: data.open_split(prepared, name, task, tokenizer, encoding) for name in names}
    encoded, digest = {name: split[1] for name, split in splits.items()}, rows.digest(splits["train"][0])
    train = encoded["train"]
    with tracking.stage_run(
        "references",
        params={"references": settings, "encode": encoding},
        tags={"task": task_name},
        hashes={"rows": digest},
        scratch=scratch_of(out),
    ) as recorder:
        index = references.index_of(train)
        found = {name: references.look_up(index, train, each, settings.most) for name, each in encoded.items()}
        scores = {
            name: references.neighbours_score(task, references.nearest(found[name]), train.label, each.label)
            for name, each in encoded.items()
            if name != "train" and task.kind is not tasks.Kind.TAGGING
        }
        recorder.metrics({"neighbours": scores})
        with files.whole_folder(out) as making:
            references.save(making, index, {name: found[name] for name in ("train", "validation")})
        files.write_json(control, {"rows": digest, "neighbours": scores})
    files.forget(scratch_of(out))


if __name__ == "__main__":
    run(look_up)
