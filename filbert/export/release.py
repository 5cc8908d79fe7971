"""A folder to hand over: one model, its tokenizer, a model card, and a predict.py that needs onnxruntime and tokenizers alone."""

import dataclasses
import shutil
from pathlib import Path

from filbert.data import tasks
from filbert.export import folder as folders
from filbert.export import references
from filbert.export.card import calibrated, model_card
from filbert.runtime import files

SCRIPT = "predict.py"


def write_release(exported: Path, file: str, out: Path, milliseconds: float) -> None:
    """Write the exported model `file` of the folder `exported` to the folder `out`; `milliseconds` is what one text takes it.

    Raises:
        FolderError: the folder is not an export.
    """
    card, record = folders.read_card(exported), files.read_json(exported / folders.RECORD)
    flags = card.flags if file == folders.INT8 else ""
    card = dataclasses.replace(card, model=file, flags=flags, **calibrated(record, file))
    task = tasks.find(card.task)
    with files.atomic_folder(out) as making:
        shutil.copyfile(exported / file, making / file)
        shutil.copyfile(exported / folders.TOKENIZER, making / folders.TOKENIZER)
        folders.write_card(card, making)
        use = (
            f'## Use\n\n```sh\npip install onnxruntime tokenizers\npython {SCRIPT} "a text" "another"\n```\n\n'
            f"One text takes {milliseconds:.2f} ms from text to answer, one thread.\n\n## Limits"
        )
        files.write_text(
            making / "README.md", _replace_section(model_card(card, task, tasks.source_of(task), record), use)
        )
        shutil.copyfile(Path(__file__).with_name("release_predict.py"), making / SCRIPT)
        if (exported / references.FOLDER).exists():
            shutil.copytree(exported / references.FOLDER, making / references.FOLDER)
            shutil.copyfile(Path(references.__file__), making / "references.py")


def _replace_section(card: str, use: str) -> str:
    """The model card with another way to use the model."""
    before, _, after = card.partition("## Use")
    return before + use + after.partition("## Limits")[2]
