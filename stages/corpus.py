"""Number the words of the texts that students are pretrained on."""

from collections.abc import Iterator
from pathlib import Path

from filbert import config, corpus, data, files, tables, tasks, tracking
from stages import run, scratch_of


def count(texts: Path, checkpoint: Path, out: Path) -> None:
    """Write the words of all texts that params.yaml names under `corpus`, fetched into TEXTS, as numbers to the folder OUT, split
    as the tokenizer of CHECKPOINT does."""
    names = config.section("corpus", corpus.CorpusConfig).texts

    def read() -> Iterator[str]:
        for name in names:
            text = tasks.find(name)
            for row in tables.read(texts / name, text.train, text):
                yield row[text.columns[0]]

    with tracking.stage_run("corpus", params={}, tags={}, hashes={}, scratch=scratch_of(out)) as recorder:
        with files.whole_folder(out) as making:
            words = corpus.write(read(), data.load_tokenizer(checkpoint), making / corpus.TEXT)
        recorder.metrics({"words": words})
    files.forget(scratch_of(out))


if __name__ == "__main__":
    run(count)
