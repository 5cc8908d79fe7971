"""Number the words of the texts that students are pretrained on."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

from filbert.data import batches, row_validation, tasks
from filbert.runtime import config, files
from filbert.text.corpus import TEXT, CorpusConfig, sample_evenly, write_corpus
from filbert.tracking import run_recorder
from stages import OutFolder, run, scratch_of


def corpus(texts: Path, checkpoint: Path, out: OutFolder) -> None:
    """Write the words of the texts of the settings `corpus`, each in its folder of TEXTS, as numbers to the folder OUT; words are
    split as the tokenizer of CHECKPOINT splits them."""
    settings = config.section("corpus", CorpusConfig)

    read = (sample_evenly(partial(_read, texts / name, name), settings.max_rows) for name in settings.texts)
    with run_recorder.stage_run("corpus", params={}, tags={}, hashes={}, scratch=scratch_of(out)) as recorder:
        with files.atomic_folder(out) as making:
            words = write_corpus(chain.from_iterable(read), batches.load_tokenizer(checkpoint), making / TEXT)
        recorder.metrics({"words": words})
    files.clear_scratch(scratch_of(out))


def _read(folder: Path, name: str) -> Iterator[str]:
    text = tasks.find(name)
    return (row[text.columns[0]] for row in row_validation.read_rows(folder, text.train, text))


if __name__ == "__main__":
    run(corpus)
