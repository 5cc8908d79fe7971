"""Ask a student about new text."""

import json
import sys
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from filbert import FilbertError, data, device, files, students
from stages import run

BATCH = 32


def predict(
    folder: Path,
    texts: Annotated[
        list[str] | None, typer.Argument(help="one text each, a pair joined by a tab; else lines of stdin")
    ] = None,
) -> None:
    """Print what the student in FOLDER says of each of TEXTS: a line of JSON with the text, its label and probability, or
    its number where the task is a regression."""
    model, tokenizer, on = students.load(folder), data.load_tokenizer(folder), device.pick()
    torch.nn.Module.to(model, on)
    length = files.read_json(folder / students.MADE_WITH)["encode/max_length"]
    names: Any = model.config.id2label
    lines = iter(texts or (line.rstrip("\n") for line in sys.stdin))
    while part := list(islice(lines, BATCH)):
        rows = [line.split("\t") for line in part]
        if ragged := next((row for row in rows if len(row) != len(rows[0])), None):
            raise FilbertError(
                f"expected {len(rows[0])} texts joined by tabs in each line, got {len(ragged)} in: {ragged[0][:60]}"
            )
        pieces = tokenizer(
            *map(list, zip(*rows, strict=True)), padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**pieces.to(on)).logits.float()
        for text, row in zip(part, logits, strict=True):
            label, probability = names[int(row.argmax())], float(row.softmax(-1).max())
            said = {"label": label, "probability": probability} if len(row) > 1 else {"score": float(row)}
            print(json.dumps({"text": text, **said}, ensure_ascii=False))


if __name__ == "__main__":
    run(predict)
