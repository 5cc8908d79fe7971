"""Fetch the texts that transfer sets and the corpus are made of."""

from pathlib import Path

from filbert.data import sources, tasks
from filbert.runtime import config, files
from filbert.text.corpus import CorpusConfig
from filbert.text.transfer import TransferConfig
from filbert.tracking import recording
from stages import run, scratch_of
from stages.fetch import source_of


def texts(out: Path) -> None:
    """Fetch the raw files of every text that params.yaml names, for a task or the corpus, each into its folder in OUT."""
    settings, names = config.section("transfer", TransferConfig), config.section("tasks", tuple[str, ...])
    wanted = {text.name: text for name in names for text in settings.of(tasks.find(name))}
    wanted |= {name: tasks.find(name) for name in config.section("corpus", CorpusConfig).texts}
    with (
        recording.stage_run("texts", params={}, tags={}, hashes={}, scratch=scratch_of(out)) as recorder,
        files.atomic_folder(out) as making,
    ):
        for name, text in wanted.items():
            sources.fetch_task(source_of(text), text, making / name)
        files.write_json(making / "TEXTS.json", sorted(wanted))
        recorder.metrics({"texts": len(wanted)})
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(texts)
