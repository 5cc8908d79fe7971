"""Ask a trained or exported model about text: `filbert predict MODEL "a text"`, from stdin, or file to file."""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from filbert import FilbertError
from filbert.data.formats import RowError
from filbert.export import folder as folders
from filbert.export.inference import TOKENS, Predictor, Text, open_model
from filbert.export.predict_file import Counts, Options, answer_rows, predict_file
from filbert.runtime.progress import log, logged_warnings
from stages import run

BAD_ROWS = 3  # the exit code where some rows could not be answered
SHOWN = 100  # bad rows that are named
LINES = 256  # of stdin, answered together


def predict(
    folder: Path,
    texts: Annotated[
        list[str] | None, typer.Argument(help="one text each, a pair joined by a tab; else lines of stdin")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="texts: .csv, .tsv, .jsonl, .parquet or .txt")] = None,
    out: Annotated[Path | None, typer.Option(help="answers: .jsonl, .csv or .parquet; needed with --file")] = None,
    columns: Annotated[str, typer.Option(help="the columns of FILE with the texts, if not the task's: a,b")] = "",
    every: Annotated[bool, typer.Option("--all", help="the probabilities of all labels")] = False,
    abstain: Annotated[float | None, typer.Option(help="wanted precision: no label where it would be missed")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="of each batch; all cores if not given")] = None,
    workers: Annotated[int, typer.Option(min=1, help="batches at the same time")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="budget of a batch, padding included")] = TOKENS,
    float32: Annotated[
        bool, typer.Option("--float32", help="the float32 file, also where int8 passed the gate")
    ] = False,
) -> None:
    """Print what the model in FOLDER answers to each of TEXTS, a line of JSON each, or answer FILE into OUT."""
    options = Options(every, abstain, tokens, workers)
    with logged_warnings():
        model = open_model(folder, threads, folders.FLOAT32 if float32 else "")
    report = Reporter()
    if file or out:
        if not (file and out) or texts:
            raise FilbertError("expected --file with --out, and no texts beside them")
        named = tuple(columns.split(",")) if columns else model.card.columns
        if len(named) != len(model.card.columns):
            raise FilbertError(
                f"--columns: expected {len(model.card.columns)}, for {', '.join(model.card.columns)}; got {columns}"
            )
        counts = predict_file(model, folder, file, out, named, options, report)
        log(f"{out}: {counts.answered} answers")
    else:
        counts = _print_answers(model, texts, options, report)
    if counts.cut:
        log(f"{counts.cut} texts were longer than {model.card.max_length} tokens and were cut")
    if counts.bad:
        log(f"{counts.bad} of {counts.read} rows could not be answered")
        raise typer.Exit(BAD_ROWS)


class Reporter:
    """Names the first bad rows on stderr."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, problem: str) -> None:
        self.count += 1
        if self.count <= SHOWN:
            log(problem if self.count < SHOWN else f"{problem}\nfurther rows are only counted")


def _print_answers(model: Predictor, texts: list[str] | None, options: Options, report: Reporter) -> Counts:
    counts, size = Counts(), 1 if not texts and sys.stdin.isatty() else LINES
    rows = ((f"text {number}", text) for number, text in enumerate(texts, 1)) if texts else _stdin()
    while part := list(islice(rows, size)):
        parsed: Iterable[tuple[str, Text | RowError]] = [(where, _split(model, line)) for where, line in part]
        for number, answer in answer_rows(model, parsed, options, counts, report):
            print(json.dumps({"text": part[number][1], **answer}, ensure_ascii=False), flush=size == 1)
    return counts


def _stdin() -> Iterator[tuple[str, str]]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield f"line {number}", line.decode(errors="surrogateescape").rstrip("\r\n")


def _split(model: Predictor, line: str) -> Text:
    return tuple(line.split("\t")) if len(model.card.columns) > 1 else line  # type: ignore[return-value]


if __name__ == "__main__":
    run(predict)
