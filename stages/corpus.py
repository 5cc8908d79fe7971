"""Number the words of the texts that students are pretrained on."""

from collections.abc import Iterator
from pathlib import Path

from filbert.data import batches, readers, tasks
from filbert.runtime import config, files
from filbert.text import corpus
from filbert.tracking import recording
from stages import run, scratch_of


def count(texts: Path, checkpoint: Path, out: Path) -> None:
    """Write the words of all texts that params.yaml names under `corpus`, fetched into TEXTS, as numbers to the folder OUT, split
    as the tokenizer of CHECKPOINT does."""
    names = config.section("corpus", corpus.CorpusConfig).texts

    def read() -> Iterator[str]:
        for name in names:
            text = tasks.find(name)
            for row in readers.read_rows(texts / name, text.train, text):
                yield row[text.columns[0]]

    with recording.stage_run("corpus", params={}, tags={}, hashes={}, scratch=scratch_of(out)) as recorder:
        with files.atomic_folder(out) as making:
            words = corpus.write_corpus(read(), batches.load_tokenizer(checkpoint), making / corpus.TEXT)
        recorder.metrics({"words": words})
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(count)
