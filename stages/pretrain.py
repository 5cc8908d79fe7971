"""Pretrain a student with a small vocabulary of its own, for any task."""

from pathlib import Path

from filbert.data import batches
from filbert.methods.mixed_vocabulary import PretrainConfig, pretrain
from filbert.models import checkpoints
from filbert.runtime import config, device, files
from filbert.text.corpus import TEXT, read_corpus
from filbert.tracking import run_recorder
from stages import OutFolder, run, scratch_of

SEED = 0  # one student, for every task and seed


def pretrain_student(name: str, corpus: Path, checkpoint: Path, out: OutFolder) -> None:
    """Pretrain the student of the settings `pretrain.NAME` on CORPUS, its embeddings aligned with those of CHECKPOINT, into the
    folder OUT."""
    settings, scratch = config.section(f"pretrain.{name}", PretrainConfig), scratch_of(out)
    hashes = {"words": files.sha256(corpus / TEXT)[:12], "checkpoint": files.weights_hash(checkpoint)[:12]}
    with run_recorder.stage_run(
        "pretrain", params=vars(settings), tags={"method": name}, hashes=hashes, scratch=scratch
    ) as recorder:
        words, teacher = read_corpus(corpus / TEXT), batches.load_tokenizer(checkpoint)
        student, tokenizer = pretrain(
            words, checkpoint, teacher, settings, SEED, device.select_device(), scratch, recorder
        )
        with files.atomic_folder(out) as making:
            checkpoints.save_with_provenance(student, tokenizer, making, recorder)
    files.clear_scratch(scratch)


if __name__ == "__main__":
    run(pretrain_student)
