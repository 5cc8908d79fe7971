"""What an exported folder says of itself: its config.json, read strictly. No torch."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filbert import FilbertError
from filbert.data.tasks import COLUMNS, TaskKind
from filbert.runtime import config

CONFIG = "config.json"
FLOAT32, INT8 = "model.onnx", "model.int8.onnx"
NAMES = {FLOAT32: "float32", INT8: "int8"}  # as tables show them
TOKENIZER = "tokenizer.json"
RECORD = "export.json"  # how it was made: the check on logits, the int8 gate, scores, sizes, latency
FORMAT = "filbert-export-1"
KINDS = tuple(kind for kind in TaskKind if kind is not TaskKind.TEXT)


class FolderError(FilbertError):
    """A folder holds no model that can be run, or not all of one."""


@dataclass(frozen=True)
class ModelCard:
    """What has to be known to run an exported model and to read its logits."""

    task: str
    student: str
    seed: int
    kind: str  # of the task: single, pair, multilabel, regression, tagging
    columns: tuple[str, ...]  # the text columns of a row
    labels: tuple[str, ...]  # none of a regression
    max_length: config.PositiveInt  # tokens; longer rows are cut
    pad: config.NonNegativeInt  # the token of padding
    model: str  # the file to run
    flags: str = ""  # of the processor that an int8 file was gated on
    temperature: config.Positive = 1.0  # logits are divided by it
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)  # by wanted precision: threshold, coverage
    format: str = FORMAT

    def __post_init__(self) -> None:
        """Raises FolderError where the kind is none, or the columns are not its."""
        if self.kind not in KINDS or len(self.columns) not in COLUMNS.get(TaskKind(self.kind), (1,)):
            raise FolderError(
                f"kind, columns: expected one of {', '.join(KINDS)} and its columns, got {self.kind} with {self.columns}"
            )

    def threshold(self, precision: float) -> float:
        """The least probability at which answers had this precision on validation rows.

        Raises:
            FolderError: none was found for it.
        """
        key = f"{precision:g}"
        if key not in self.thresholds:
            known = ", ".join(self.thresholds) or "none"
            raise FolderError(
                f"abstain: expected a precision with a threshold in {CONFIG} ({known}), got {key}; "
                "others are named in export.precisions of params.yaml"
            )
        return self.thresholds[key]["threshold"]


def write_card(card: ModelCard, folder: Path) -> None:
    (folder / CONFIG).write_text(json.dumps(dataclasses.asdict(card), indent=2, ensure_ascii=False) + "\n", "utf-8")


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an export rather than a Torch model."""
    return read_config(folder).get("format") == FORMAT


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of any model's folder.

    Raises:
        FolderError: there is no such folder or file, or it is no JSON object.
    """
    file = folder / CONFIG
    if not file.is_file():
        state = "a folder without it" if folder.is_dir() else "no folder"
        raise FolderError(f"{file}: expected the {CONFIG} of a trained or exported model, found {state}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FolderError(f"{file}: expected JSON, got {error}") from error
    if not isinstance(found, dict):
        raise FolderError(f"{file}: expected a JSON object, got {found!r:.60}")
    return found


def read_card(folder: Path) -> ModelCard:
    """What an exported folder says of itself.

    Raises:
        FolderError: a key is missing or unknown, or a value is none of it.
    """
    try:
        return config.build(ModelCard, read_config(folder), str(folder / CONFIG))
    except config.ConfigError as error:
        raise FolderError(f"{error}: export the model again") from error
