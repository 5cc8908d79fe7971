"""What serving costs, a step at a time: from the teacher in Torch padded to the maximum length to students in int8.

| arm | what changes |
| --- | --- |
| teacher, Torch, padded | float32, every row padded to the maximum length: what people start from |
| teacher, Torch | real lengths |
| teacher, ONNX; teacher, int8 | onnxruntime; the file that passed the gate |
| student, Torch; ONNX; int8 | the same of each student |
| …, workers | one thread each, as many batches at the same time as there are cores |

Arms run in turn in one process, on real rows grouped by length; a factor is of medians, against the first arm. One row at a time
and in batches of 32, on one thread and on all cores. Scores are those of the test rows.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import typer
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.turns import in_turn, machine
from filbert.data import batches, tasks
from filbert.data.batches import Batch
from filbert.evaluation.tables import markdown_table
from filbert.export import folder as folders
from filbert.export.gate import OnnxModel
from filbert.models import checkpoints
from filbert.runtime import config
from filbert.runtime.files import read_json, write_text

BATCHES = (1, 32)
ROWS = {1: 32, 32: 128}  # rows of a round, by batch size
Forward = Callable[[Batch], object]


class Arm(NamedTuple):
    """What runs a batch, how many batches at the same time, and the rows as its tokenizer reads them."""

    run: Forward
    workers: int
    rows: batches.TokenizedDataset


def main(
    task_name: str,
    prepared: Path,
    teacher: Path,
    exported: Annotated[Path, typer.Argument(help="the folder of all exports of the task: data/exported/TASK")],
    students: Annotated[Path, typer.Argument(help="the folder of its students: data/students/TASK")],
    out: Annotated[Path, typer.Argument(help="the Markdown file to write")],
    names: Annotated[str, typer.Option(help="students, by comma; all that were exported if not given")] = "",
    seed: int = 1,
    rounds: int = 7,
    base: Annotated[bool, typer.Option(help="also time BERT-base's shape with random weights, padded")] = True,
) -> None:
    """Time the TEACHER and students of TASK_NAME on test rows of PREPARED."""
    task, encoding = tasks.find(task_name), config.section("tokenizer", batches.TokenizerConfig)
    found = (
        names.split(",")
        if names
        else sorted(f.name for f in exported.iterdir() if (f / str(seed)).is_dir() and f.name != "teacher")
    )
    models = {"teacher": (teacher, exported / "teacher" / "0")}
    models |= {name: (students / name / str(seed), exported / name / str(seed)) for name in found}
    rows = {
        name: batches.load_split(prepared, "test", task, batches.load_tokenizer(folder), encoding)[1]
        for name, (folder, _) in models.items()
    }
    cores = os.cpu_count() or 1
    parts = []
    for threads in dict.fromkeys((1, cores)):
        torch.set_num_threads(threads)
        arms = _arms(models, rows, encoding.max_length, threads, cores, base)
        parts += [f"## {threads} thread{'s' if threads > 1 else ''}\n\n{_table(arms, rounds, _scores(models))}"]
    head = (
        f"Measured by `python -m benchmarks.inference` on {task_name}, test rows, {rounds} rounds in turn, "
        f"{machine(torch.device('cpu'))}."
    )
    write_text(out, "\n\n".join(["# Serving, a step at a time", head, *parts]) + "\n")
    print(out.read_text())


def _arms(
    models: dict[str, tuple[Path, Path]], rows: dict[str, batches.TokenizedDataset], longest: int, threads: int, cores: int,
    base: bool,
) -> dict[str, Arm]:  # fmt: skip
    """Every arm, by its name."""
    arms: dict[str, Arm] = {}
    for name, (folder, export) in models.items():
        model = checkpoints.load_model(folder)
        if name == "teacher":
            arms["teacher, Torch, padded"] = Arm(_padded(model, longest), 1, rows[name])
        arms[f"{name}, Torch"] = Arm(_torch(model), 1, rows[name])
        for label, file in (("ONNX", folders.FLOAT32), ("int8", folders.INT8)):
            if (export / file).exists():
                arms[f"{name}, {label}"] = Arm(_onnx(OnnxModel(export, export / file, threads)), 1, rows[name])
                if threads == cores > 1:
                    arms[f"{name}, {label}, workers"] = Arm(
                        _onnx(OnnxModel(export, export / file, 1)), cores, rows[name]
                    )
    if base:
        shape = BertForSequenceClassification(BertConfig()).eval()
        arms["BERT-base's shape, Torch, padded"] = Arm(_padded(shape, longest), 1, rows["teacher"])
    return arms


def _torch(model: Any) -> Forward:
    def run(batch: Batch) -> object:
        with torch.inference_mode():
            return checkpoints.forward_batch(model, batch)

    return run


def _padded(model: Any, longest: int) -> Forward:
    run = _torch(model)

    def padded(batch: Batch) -> object:
        more = 0, longest - batch.ids.shape[1]
        return run(Batch(F.pad(batch.ids, more), F.pad(batch.types, more), F.pad(batch.mask, more), batch.label))

    return padded


def _onnx(model: OnnxModel) -> Forward:
    return lambda batch: model(batch.ids, batch.mask, batch.types)


def _table(arms: dict[str, Arm], rounds: int, scores: dict[str, str]) -> str:
    columns = {size: _seconds(arms, size, rounds) for size in BATCHES}
    first = next(iter(arms))
    lines = []
    for name in arms:
        cells = [name, scores.get(name.removesuffix(", workers").removesuffix(", padded"), "–")]
        for size in BATCHES:
            median, least = (1000 * of(columns[size][name]) / ROWS[size] for of in (np.median, min))
            cells += [
                f"{median:.2f} ({least:.2f})",
                f"{np.median(columns[size][first]) / np.median(columns[size][name]):.1f}×",
            ]
        lines.append(cells)
    return markdown_table(
        [["arm", "score", "ms a row, batch 1 (least)", "factor", "ms a row, batch 32 (least)", "factor"], *lines]
    )


def _seconds(arms: dict[str, Arm], size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm for so many rows, the same for all, spread evenly over the lengths that occur."""
    lengths = next(iter(arms.values())).rows.lengths
    order = np.argsort(lengths, kind="stable")
    count = min(ROWS[size], len(order))
    chosen = order[((np.arange(count) + 0.5) / count * len(order)).astype(int)]

    def runner(arm: Arm) -> Callable[[], None]:
        made = [arm.rows.batch(chosen[start : start + size]) for start in range(0, count, size)]

        def all_of_them() -> None:
            if arm.workers == 1:
                for batch in made:
                    arm.run(batch)
            else:
                list(pool.map(arm.run, made))

        return all_of_them

    with ThreadPoolExecutor(max(arm.workers for arm in arms.values())) as pool:
        return in_turn({name: runner(arm) for name, arm in arms.items()}, rounds)


def _scores(models: dict[str, tuple[Path, Path]]) -> dict[str, str]:
    """By arm the score on the test rows: of Torch that of the float32 file, whose logits are Torch's."""
    out = {}
    for name, (_, export) in models.items():
        for file, figures in read_json(export / folders.RECORD)["files"].items():
            tests = [100 * found["score"] for split, found in figures.items() if split.startswith("test")]
            for label in ("ONNX", "Torch") if file == folders.FLOAT32 else ("int8",):
                out[f"{name}, {label}"] = f"{np.mean(tests):.1f}"
    return out


if __name__ == "__main__":
    typer.run(main)
