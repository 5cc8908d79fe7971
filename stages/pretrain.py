"""Pretrain a student with a small vocabulary of its own, for any task."""

from pathlib import Path

from filbert import config, corpus, data, device, files, students, tracking
from filbert.pretraining import PretrainConfig, pretrain
from stages import run, scratch_of

SEED = 0  # one student, for every task and seed


def make(name: str, words: Path, checkpoint: Path, out: Path) -> None:
    """Pretrain the student that params.yaml describes under `pretrain.NAME` on the corpus WORDS, its embeddings aligned with those
    of CHECKPOINT, into the folder OUT."""
    settings, scratch = config.section(f"pretrain.{name}", PretrainConfig), scratch_of(out)
    hashes = {"words": files.sha256(words / corpus.TEXT)[:12], "checkpoint": files.weights_hash(checkpoint)[:12]}
    with tracking.stage_run(
        "pretrain", params=vars(settings), tags={"method": name}, hashes=hashes, scratch=scratch
    ) as recorder:
        student, tokenizer = pretrain(
            corpus.read(words / corpus.TEXT), checkpoint, data.load_tokenizer(checkpoint), settings, SEED, device.pick(), scratch,
            recorder,
        )  # fmt: skip
        with files.whole_folder(out) as making:
            students.publish(student, tokenizer, making, recorder)
    files.forget(scratch)


if __name__ == "__main__":
    run(make)
