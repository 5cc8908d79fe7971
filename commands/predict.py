"""Ask a student about new text."""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import torch
import typer

from filbert import FilbertError
from filbert.data import batches, tasks
from filbert.data.arrow import row_schema
from filbert.evaluation import metrics
from filbert.models import checkpoints
from filbert.runtime import device, files
from stages import run

BATCH = 32


def predict(
    folder: Path,
    texts: Annotated[
        list[str] | None, typer.Argument(help="one text each, a pair joined by a tab; else lines of stdin")
    ] = None,
) -> None:
    """Print what the student in FOLDER says of each of TEXTS: a line of JSON with the text, its label and probability, or
    its number where the task is a regression, or its words and their tags."""
    model, tokenizer, on = checkpoints.load_model(folder), batches.load_tokenizer(folder), device.select_device()
    torch.nn.Module.to(model, on)
    length = files.read_json(folder / checkpoints.PROVENANCE)["encode/max_length"]
    answer = _tags if type(model).__name__.endswith("ForTokenClassification") else _labels
    lines = iter(texts or (line.rstrip("\n") for line in sys.stdin))
    while part := list(islice(lines, BATCH)):
        for text, said in zip(part, answer(model, tokenizer, part, length, on), strict=True):
            print(json.dumps({"text": text, **said}, ensure_ascii=False))


def _labels(model: Any, tokenizer: Any, part: list[str], length: int, on: torch.device) -> Iterator[dict[str, Any]]:
    rows = [line.split("\t") for line in part]
    if ragged := next((row for row in rows if len(row) != len(rows[0])), None):
        raise FilbertError(
            f"expected {len(rows[0])} texts joined by tabs in each line, got {len(ragged)} in: {ragged[0][:60]}"
        )
    tokens = tokenizer(
        *map(list, zip(*rows, strict=True)), padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**tokens.to(on)).logits.float()
    for row in logits:
        if len(row) == 1:
            yield {"score": float(row)}
        else:
            yield {"label": model.config.id2label[int(row.argmax())], "probability": float(row.softmax(-1).max())}


def _tags(model: Any, tokenizer: Any, part: list[str], length: int, on: torch.device) -> Iterator[dict[str, Any]]:
    names = tuple(model.config.id2label[i] for i in range(len(model.config.id2label)))
    task = tasks.Task(kind=tasks.TaskKind.TAGGING, columns=("sentence",), labels=names, source="")
    unknown = [{"idx": i, "sentence": text, "label": [0] * len(text.split()), "hash": 0} for i, text in enumerate(part)]
    table = pa.Table.from_pylist(unknown, schema=row_schema(task))
    rows = batches.tokenize(table, task, tokenizer, batches.TokenizerConfig(length))
    found = metrics.tags_by_word(
        metrics.predictions(task, checkpoints.predict_logits(model, rows, BATCH, on)), rows
    ).tolist()
    for i, text in enumerate(part):
        tags = found[sum(len(other.split()) for other in part[:i]) :]
        yield {"tags": [[word, names[tag]] for word, tag in zip(text.split(), tags, strict=False)]}


if __name__ == "__main__":
    run(predict)
