"""What grows with the rows, with the students and with the length, as tables and a picture.

- rows: synthetic ones from a CSV file through `prepare`, the tokenizer and a cache of logits by a teacher of 2 × 16 (so that what
  the cache costs is not hidden behind a teacher), and what a training step reads of them;
- students: as many stages that do nothing but write a file and record a run, through `python -m pipelines.repro --jobs 2`: the
  first time, and again when nothing has changed;
- length: a training step of the student 3 × 384, 32 rows.
"""

import csv
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from benchmarks.training_step import STUDENT, multiply, new_step, seconds
from benchmarks.turns import machine
from filbert.cache import build, teacher_cache
from filbert.data import arrow, batch_order, batches, splits, tasks
from filbert.evaluation.tables import markdown_table
from filbert.runtime import progress
from filbert.runtime.files import write_text

CPU = torch.device("cpu")
WORDS, BATCH, BATCHES = 20, 32, 200  # a row's words; a batch's rows; batches whose reading is timed
TASK = tasks.Task(name="growth", kind=tasks.TaskKind.SINGLE, columns=("sentence",), labels=("no", "yes"), metrics=("accuracy",),
                  source="growth")  # fmt: skip
CACHE = teacher_cache.CacheConfig("float16", batch_size=256, shard_mb=512, budget_gb=20, verify_rows=8, tolerance=0.05)
ROW_COLUMNS = (
    "prepare, s",
    "tokenise, s",
    "fill the cache, s",
    "join it to the rows, s",
    "order of an epoch, s",
    "a batch, ms",
)
STAGE = '''"""A stage that does nothing."""

from pathlib import Path

from filbert.tracking import run_recorder
from stages import OutFile, run, scratch_of


def nothing(name: str, rows: Path, out: OutFile) -> None:
    """Write NAME to OUT."""
    with run_recorder.stage_run("nothing", params={}, tags={"task": name}, hashes={}, scratch=scratch_of(out)) as recorder:
        recorder.metrics({"rows": len(rows.read_text())})
        out.write_text(name)


if __name__ == "__main__":
    run(nothing)
'''
GRAPH = """stages:
  nothing:
    matrix: {name: "${names}"}
    cmd: python -m stages.nothing ${item.name} rows.txt out/${item.name}
    deps: [rows.txt, stages/__init__.py, stages/nothing.py, filbert/runtime, filbert/data, filbert/models, filbert/training]
    params: ["settings.${item.name}"]
    outs: ["out/${item.name}"]
"""


def grow_rows(count: int, checkpoint: Path, folder: Path) -> list[float]:
    """What `count` rows cost, by ROW_COLUMNS."""
    tokenizer, found = batches.load_tokenizer(checkpoint), []
    write_rows(folder / "train.csv", count, tokenizer)

    def timed(call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        found.append(time.perf_counter() - start)
        return result

    def encode(table: Any) -> batches.TokenizedDataset:
        return batches.tokenize(table, TASK, tokenizer, batches.TokenizerConfig(128))

    prepared = timed(lambda: splits.prepare(folder, TASK, splits.PrepareConfig(0.1, 0.125, 5000, 0)))
    arrow.write_table(prepared.tables["train"], folder / "train.arrow")
    table = arrow.read_table(folder / "train.arrow")
    rows = timed(lambda: encode(table))
    shape = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    teacher, key = BertForSequenceClassification(shape), teacher_cache.Fingerprint("t", "t", 128, "float16", "any")
    timed(lambda: build.build_cache(folder / "cache", teacher, table, encode, ["logits"], key, CACHE, CPU))
    joined = timed(lambda: rows.with_targets(teacher_cache.TeacherCache([folder / "cache"], key).on(rows, ["logits"])))
    order = timed(lambda: batch_order.shuffled_batches(rows.lengths, BATCH, 0, 0))
    timed(lambda: [joined.batch(at) for at in order[:BATCHES]])
    found[-1] *= 1e3 / min(BATCHES, len(order))
    return found


def write_rows(file: Path, count: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rows of words of the tokenizer's own, as frequent as words are in text."""
    words = [token for token in tokenizer.get_vocab() if token.isalpha()]
    draw = np.random.default_rng(0)
    with file.open("w", newline="") as opened:
        out = csv.writer(opened)
        out.writerow(["sentence", "label"])
        for number in range(count):
            out.writerow([" ".join(words[i] for i in draw.zipf(1.3, WORDS) % len(words)), number % 2])


def grow_students(count: int, folder: Path) -> list[float]:
    """Seconds of a first run of so many stages that do nothing, and of a second one."""
    root = Path(__file__).resolve().parent.parent
    for room in ("filbert", "stages", "pipelines"):
        shutil.copytree(root / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    names = [f"s{number}" for number in range(count)]
    write_text(folder / "stages" / "nothing.py", STAGE)
    write_text(folder / "dvc.yaml", GRAPH)
    write_text(
        folder / "params.yaml", f"names: [{', '.join(names)}]\nsettings: {{{', '.join(f'{n}: 1' for n in names)}}}\n"
    )
    write_text(folder / "rows.txt", "rows\n")
    shutil.copyfile(root / ".dvcignore", folder / ".dvcignore")
    for command in ("git init -q", f"{sys.executable} -m dvc init -q"):
        subprocess.run(command.split(), cwd=folder, check=True)
    found = []
    for _ in range(2):
        start = time.perf_counter()
        repro = [sys.executable, "-m", "pipelines.repro", "--jobs", "2"]
        subprocess.run(repro, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - start)
    return found


def grow_length(length: int, least: float) -> float:
    """Milliseconds of a training step."""
    return 1e3 * seconds(new_step(STUDENT.new(), length, STUDENT.vocabulary), multiply(), least)[0]


def draw(file: Path, rows: dict[int, list[float]], students: dict[int, list[float]], length: dict[int, float]) -> None:
    """The picture: the same bytes for the same figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "filbert"
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8))
    for number, name in enumerate(ROW_COLUMNS):
        panels[0].plot(list(rows), [found[number] for found in rows.values()], "o-", label=name)
    for number, name in enumerate(("first run", "nothing has changed")):
        panels[1].plot(list(students), [found[number] for found in students.values()], "o-", label=name)
    panels[2].plot(list(length), list(length.values()), "o-", label="a step")
    shortest = min(length)
    panels[2].plot(list(length), [length[shortest] * n / shortest for n in length], ":", color="grey", label="linear")
    for panel, (what, unit) in zip(
        panels, (("rows", ""), ("stages", "seconds"), ("tokens of a row", "ms a step")), strict=True
    ):
        panel.set(xscale="log", yscale="log", xlabel=what, ylabel=unit)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def table(what: str, columns: tuple[str, ...], found: dict[int, list[float]]) -> str:
    return markdown_table(
        [[what, *columns], *([f"{n:,}", *(f"{value:.3g}" for value in line)] for n, line in found.items())]
    )


def main(
    checkpoint: Path,
    out: Annotated[Path, typer.Argument(help="the Markdown file to write; the picture lies beside it")],
    rows: list[int] = [1_000, 10_000, 100_000],  # noqa: B006
    students: list[int] = [1, 10, 100],  # noqa: B006
    lengths: list[int] = [16, 32, 64, 128, 256, 512],  # noqa: B006
    least: Annotated[float, typer.Option(help="seconds of a step's measurement")] = 5.0,
) -> None:
    """Measure with the tokenizer of CHECKPOINT and write tables and picture."""

    def in_folder(call: Callable[..., list[float]], *arguments: Any) -> list[float]:
        with tempfile.TemporaryDirectory(prefix="filbert-growth-") as folder:
            found = call(*arguments, Path(folder))
        progress.log(f"{call.__name__} {arguments[0]:,}: {', '.join(f'{value:.3g}' for value in found)}")
        return found

    by_rows = {count: in_folder(grow_rows, count, checkpoint) for count in rows}
    by_students = {count: in_folder(grow_students, count) for count in students}
    by_length = {length: grow_length(length, least) for length in lengths}
    draw(out.with_suffix(".svg"), by_rows, by_students, by_length)
    parts = [
        "# What grows with what",
        f"Measured by `python -m benchmarks.growth`, {machine(CPU)}.",
        f"![seconds against rows, stages and length]({out.with_suffix('.svg').name})",
        "## Rows",
        table("rows", ROW_COLUMNS, by_rows),
        "## Students",
        table("stages", ("first run, s", "nothing has changed, s"), by_students),
        "## Length",
        table("tokens", ("ms a step", "µs a token"), {n: [ms, 1e3 * ms / n / BATCH] for n, ms in by_length.items()}),
    ]
    write_text(out, "\n\n".join(parts) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    typer.run(main)
