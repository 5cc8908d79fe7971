"""What transfer rows cost: variants of rows, many at once and one by one; a BiLSTM's epoch from the cache and with a live teacher.

| arm | what |
| --- | --- |
| one by one | a forward pass for each masked word, a row at a time, as TinyBERT's official code goes |
| batched | the same masked copies, many in a forward pass |
| batched, spaced | a mask every `augment.spacing` words of a copy: fewer copies |
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
import typer

from benchmarks.turns import in_turn, machine, ratios
from filbert.cache import build, teacher_cache
from filbert.data import arrow, batch_order, batches, tasks
from filbert.methods.xtremedistil import Config
from filbert.models import checkpoints
from filbert.models.bilstm import BiLstmConfig, BiLstmForSequenceClassification
from filbert.runtime import config, device
from filbert.runtime.files import write_text
from filbert.text import masked_lm
from filbert.text.augment import AugmentConfig, augment_rows
from filbert.text.transfer import row_texts
from filbert.text.word_vectors import WordVectors
from filbert.training.loop import TrainingConfig, new_optimizer

COLUMNS = ("logits", "pooled")


def main(
    task_name: str,
    prepared: Path,
    teacher_folder: Path,
    checkpoint: Path,
    vectors: Path,
    out: Annotated[Path, typer.Argument(help="the Markdown file to write")],
    rounds: int = 3,
    varied: Annotated[int, typer.Option(help="rows of the task that are varied")] = 32,
    count: Annotated[int, typer.Option(help="rows of the task in an epoch")] = 1024,
) -> None:
    """Measure on the rows and teacher of TASK_NAME as the pipeline made them."""
    task, on = tasks.find(task_name), device.select_device()
    table = arrow.read_table(prepared / "train.arrow").slice(0, count)
    texts = list(islice(row_texts(table, task), varied))
    parts = [
        f"## Variants of {varied} rows\n\n{_variants(texts, checkpoint, vectors, on, rounds)}",
        f"## An epoch of {len(table)} rows\n\n{_epochs(task, table, teacher_folder, on, rounds)}",
    ]
    head = f"Measured by `python -m benchmarks.transfer` on {task_name}, {rounds} rounds in turn, {machine(on)}."
    write_text(out, "\n\n".join(["# Transfer rows: what they cost", head, *parts]) + "\n")
    print(out.read_text())


def _variants(texts: list[tuple[str, ...]], checkpoint: Path, vectors: Path, on: torch.device, rounds: int) -> str:
    settings = config.section("augment", AugmentConfig)
    model, table = masked_lm.load_masked_lm(checkpoint, on), WordVectors(vectors)
    plain = replace(settings, spacing=0, variants=10)

    def arm(parts: list[list[tuple[str, ...]]], made_by: AugmentConfig) -> Callable[[], None]:
        def run() -> None:
            for part in parts:
                list(augment_rows(part, model, table, made_by, 0))

        return run

    arms = {
        "one by one": arm([[text] for text in texts], replace(plain, batch_size=1)),
        "batched": arm([texts], plain),
        "batched, spaced": arm([texts], replace(settings, variants=10)),
    }
    return ratios(in_turn(arms, rounds), len(texts), "rows/s")


def _epochs(task: tasks.Task, table, teacher_folder: Path, on: torch.device, rounds: int) -> str:  # type: ignore[no-untyped-def]
    encoding, asking = (
        config.section("tokenizer", batches.TokenizerConfig),
        config.section("cache", teacher_cache.CacheConfig),
    )
    tokenizer, teacher = batches.load_tokenizer(teacher_folder), checkpoints.load_model(teacher_folder)
    torch.nn.Module.to(teacher, on)
    shape = config.section("settings.xtremedistil", Config).shape
    plain = batches.tokenize(table, task, tokenizer, encoding)
    key = teacher_cache.cache_fingerprint(teacher_folder, encoding, asking, on)
    order = batch_order.shuffled_batches(plain.lengths, 64, 0, 0)

    def arm(batch_of: Callable[[np.ndarray], batches.Batch]) -> Callable[[], None]:
        student = BiLstmForSequenceClassification(
            BiLstmConfig(
                vocab_size=len(tokenizer), kept_vocab_size=len(tokenizer), hidden_size=teacher.config.hidden_size,
                embedding_size=shape.embedding, lstm_size=shape.lstm, pooling=shape.pooling,
            )
        )  # fmt: skip
        torch.nn.Module.to(student, on)
        optimizer = new_optimizer(student, TrainingConfig(1, 64, 1e-3, 0.0, "cosine", 0.0, 1.0, 0, 1))

        def run() -> None:
            for at in order:
                batch = batch_of(at).to(on)
                with device.autocast(on):
                    loss = torch.nn.functional.mse_loss(
                        checkpoints.forward_batch(student, batch).logits.float(), batch.targets["logits"]
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        return run

    def live(at: np.ndarray) -> batches.Batch:
        batch = plain.batch(at).to(on)
        with torch.inference_mode(), device.autocast(on):
            logits = checkpoints.forward_batch(teacher, batch).logits.float()
        return replace(batch, targets={"logits": logits.clone()})

    with tempfile.TemporaryDirectory(prefix="filbert-bench-") as folder:

        def tokenize(part: pa.Table) -> batches.TokenizedDataset:
            return batches.tokenize(part, task, tokenizer, encoding)

        build.build_cache(Path(folder) / "cache", teacher, table, tokenize, COLUMNS, key,
                  asking, on)  # fmt: skip
        taught = plain.with_targets(teacher_cache.TeacherCache([Path(folder) / "cache"], key).on(plain, COLUMNS))
        arms = {"from the cache": arm(taught.batch), "with a live teacher": arm(live)}
        return ratios(in_turn(arms, rounds), len(plain), "rows/s")


if __name__ == "__main__":
    typer.run(main)
