"""What the teacher cache costs and saves: building, training from it, reading it, and its memory.

Arms run in turn, `rounds` times; a ratio is of medians, beside it the ratio of minima. Training arms take the same steps
from the same start:

| arm | per step |
| --- | --- |
| no teacher | the student's loss on labels |
| logits, cached | `kd`'s loss, the teacher's logits from the cache |
| logits, live | the same, the teacher run beside it |
| states, given | `tinybert`'s layer-wise loss, the teacher's states already in memory: the loss without the cache |
| states, cached | the same, from the cache |
| states, live | the same, the teacher run beside it |
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
import typer
from torch import Tensor

from benchmarks.turns import in_turn, machine, ratio, ratios
from filbert.cache import build, teacher_cache
from filbert.data import arrow, batch_order, batches, tasks
from filbert.evaluation.tables import markdown_table
from filbert.models import checkpoints
from filbert.models.intermediate_outputs import ActivationRecorder
from filbert.runtime import config, device
from filbert.runtime.files import write_text
from filbert.training import losses
from filbert.training.layerwise import LayerMap, LayerwiseLoss
from filbert.training.loop import TrainingConfig, new_optimizer

STEPS, BATCH = 12, 32
MEMORY_ROWS = (10_000, 100_000, 1_000_000)


def main(
    task_name: str,
    prepared: Path,
    teacher_folder: Path,
    checkpoint: Path,
    out: Annotated[Path, typer.Argument(help="the Markdown file to write")],
    rounds: int = 5,
    count: Annotated[int, typer.Option(help="rows of the task used for building and reading")] = 1024,
    memory: Annotated[bool, typer.Option(help="also build and read up to a million synthetic rows")] = True,
) -> None:
    """Measure on the rows and teacher of TASK_NAME as the pipeline made them."""
    with tempfile.TemporaryDirectory(prefix="filbert-bench-") as folder:
        bench = Bench(task_name, prepared, teacher_folder, checkpoint, count, Path(folder))
        parts = [bench.building(rounds), bench.training(rounds), bench.reading(rounds)]
    head = (
        f"Measured by `python -m benchmarks.cache` on {task_name}: {count} rows of {bench.rows.lengths.mean():.0f} tokens, teacher "
        f"{bench.depth.teacher} × {bench.teacher.config.hidden_size}, student {bench.depth.student} layers, batch {BATCH}, "
        f"{rounds} rounds in turn, {machine(bench.on)}. All files lie in the page cache."
    )
    if memory:
        parts.append(memory_table())
    write_text(out, "\n\n".join(["# The teacher cache: what it costs and saves", head, *parts]) + "\n")
    print(out.read_text())


class Bench:
    """One teacher, some rows, a student, and a cache of all that the layer-wise loss needs."""

    def __init__(
        self, task_name: str, prepared: Path, teacher_folder: Path, checkpoint: Path, count: int, folder: Path
    ):
        self.task, self.on = tasks.find(task_name), device.select_device()
        self.encoding, asking = (
            config.section("tokenizer", batches.TokenizerConfig),
            config.section("cache", teacher_cache.CacheConfig),
        )
        self.asking, self.tokenizer = asking, batches.load_tokenizer(teacher_folder)
        table = arrow.read_table(prepared / "train.arrow")
        self.table = table.take(np.linspace(0, len(table) - 1, min(count, len(table))).astype(int))
        self.rows = self.encode(self.table)
        self.teacher = checkpoints.load_model(teacher_folder)
        torch.nn.Module.to(self.teacher, self.on)
        self.shape = config.section("student", checkpoints.StudentConfig)
        self.checkpoint = checkpoint
        self.depth = LayerMap(len(self.shape.layers), self.teacher.config.num_hidden_layers)
        self.key = teacher_cache.cache_fingerprint(teacher_folder, self.encoding, asking, self.on)
        self.folder = folder
        self.build(self.folder / "kept", self.depth.columns())
        self.cache = teacher_cache.TeacherCache([self.folder / "kept"], self.key)

    def encode(self, table: pa.Table) -> batches.TokenizedDataset:
        return batches.tokenize(table, self.task, self.tokenizer, self.encoding)

    def build(self, folder: Path, columns: tuple[str, ...]) -> None:
        build.build_cache(folder, self.teacher, self.table, self.encode, columns, self.key, self.asking, self.on)

    def bare(self) -> None:
        """The teacher's forward over all rows, encoded first and grouped by length as the cache does it."""
        encoded = self.encode(self.table)
        order = np.argsort(encoded.lengths, kind="stable")
        for start in range(0, len(order), self.asking.batch_size):
            with torch.inference_mode(), device.autocast(self.on):
                checkpoints.forward_batch(
                    self.teacher, encoded.batch(order[start : start + self.asking.batch_size]).to(self.on)
                )

    def building(self, rounds: int) -> str:
        number = iter(range(1_000_000))
        arms: dict[str, Callable[[], None]] = {
            "the bare teacher": self.bare,
            "cache of logits": lambda: self.build(self.folder / str(next(number)), ("logits",)),
            "cache of states, attention, logits": lambda: self.build(
                self.folder / str(next(number)), self.depth.columns()
            ),
        }
        return "## Building\n\n" + ratios(in_turn(arms, rounds), len(self.rows), "rows/s")

    def training(self, rounds: int) -> str:
        plain, words = self.rows, self.cache.on(self.rows, self.depth.columns())
        states, logits = self.rows.with_targets(words), self.rows.with_targets(self.cache.on(self.rows, ["logits"]))
        order = batch_order.shuffled_batches(plain.lengths, BATCH, 0, 0)[:STEPS]
        given = dict(zip(map(bytes, order), map(states.batch, order), strict=True))
        arms = {
            "no teacher": self._epoch(order, plain.batch, "hard"),
            "logits, cached": self._epoch(order, logits.batch, "logits"),
            "logits, live": self._epoch(order, partial(self._live, ("logits",)), "logits"),
            "states, given": self._epoch(order, lambda at: given[bytes(at)], "states"),
            "states, cached": self._epoch(order, states.batch, "states"),
            "states, live": self._epoch(order, partial(self._live, self.depth.columns()), "states"),
        }
        seen = sum(map(len, order))
        times = in_turn(arms, rounds)
        against = {
            "states, cached": "states, given",
            "states, live": "states, cached",
            "logits, live": "logits, cached",
        }
        return "## Training\n\n" + ratios(times, seen, "rows/s") + "\n\n" + "\n".join(
            f"- {name} against {other}: {ratio(times[name], times[other])}" for name, other in against.items()
        )  # fmt: skip

    def _live(self, columns: tuple[str, ...], at: np.ndarray) -> batches.Batch:
        batch = self.rows.batch(at)
        with torch.inference_mode(), device.autocast(self.on), ActivationRecorder(self.teacher, columns) as listen:
            said = listen(batch.to(self.on))[1]
        return batches.replace(batch, targets={name: value.clone() for name, value in said.items()})

    def _epoch(
        self, order: list[np.ndarray], batch_of: Callable[[np.ndarray], batches.Batch], loss: str
    ) -> Callable[[], None]:
        """A function that trains a student of its own on these rows, batch by batch."""
        torch.manual_seed(0)
        student = checkpoints.new_student(self.checkpoint, self.task, self.shape).train()
        torch.nn.Module.to(student, self.on)
        following = LayerwiseLoss(student, self.depth, self.teacher.config.hidden_size)
        trained = torch.nn.ModuleDict({"student": student, "beside": following})
        fit = TrainingConfig(1, BATCH, 1e-5, 0.1, "linear", 0.01, 1.0, 0, 1)
        optimizer = new_optimizer(trained if loss == "states" else student, fit)
        if loss != "states":
            following.__exit__()

        def value(batch: batches.Batch) -> Tensor:
            if loss == "states":
                return following.loss(batch)
            logits = checkpoints.forward_batch(student, batch).logits
            hard = losses.TASK_LOSSES[self.task.kind](logits, batch.label)
            return (
                hard
                if loss == "hard"
                else hard + losses.DISTILLATION_LOSSES[self.task.kind](logits, batch.targets["logits"], 2.0)
            )

        def run() -> None:
            for at in order:
                with device.autocast(self.on):
                    found = value(batch_of(at).to(self.on))
                optimizer.zero_grad(set_to_none=True)
                found.backward()
                torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
                optimizer.step()

        return run

    def reading(self, rounds: int) -> str:
        words = self.cache.on(self.rows, self.depth.columns())
        order = batch_order.shuffled_batches(self.rows.lengths, BATCH, 0, 0)
        taken = [words.take(at) for at in order]
        size = sum(tensor.nbytes for batch in taken for tensor in batch.values())

        def copy() -> None:
            for batch in taken:
                for tensor in batch.values():
                    tensor.clone()

        def read() -> None:
            for at in order:
                words.take(at)

        times = in_turn({"a plain copy of the batches": copy, "batches from the cache": read}, rounds)
        return "## Reading\n\n" + ratios(
            {name: [1e9 * t for t in found] for name, found in times.items()}, size, "GB/s"
        )


def memory_table() -> str:
    """Peak memory that is no mapped file, by number of synthetic rows, each in a process of its own."""
    found = [["rows", "cache, MB", "peak while building, MB", "peak while reading, MB"]]
    for count in MEMORY_ROWS:
        command = [sys.executable, "-m", "benchmarks.cache_memory", str(count)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found.append([f"{count:,}", *said.split()])
    return (
        "## Memory\n\nSynthetic rows of 12 words, a teacher of 2 × 16, states of all layers, beyond what 256 rows take.\n\n"
        + markdown_table(found)
    )


if __name__ == "__main__":
    typer.run(main)
