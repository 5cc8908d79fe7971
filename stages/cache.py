"""Ask the teacher about every training and transfer row, once. The only stage that runs the teacher over data."""

from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from filbert.cache import build
from filbert.cache import read as teacher_cache
from filbert.data import arrow, batches, tasks
from filbert.methods.context import learns_from_transfer
from filbert.models import checkpoints
from filbert.models.activations import column_for_task
from filbert.runtime import config, device, files
from filbert.tracking import recording
from filbert.training.layerwise import LayerMap
from stages import run, scratch_of


def cache(
    task_name: str,
    part: int,
    prepared: Path,
    transfer: Path,
    teacher_folder: Path,
    out: Path,
    verify: Annotated[
        bool, typer.Option(help="only ask a sample again, live, and report the largest differences")
    ] = False,
) -> None:
    """Append what the listed methods need to know of the teacher in TEACHER_FOLDER, on those training rows in PREPARED and
    rows in TRANSFER that fall to PART, to the part of the cache in the folder OUT."""
    task, settings = tasks.find(task_name), config.section("cache", teacher_cache.CacheConfig)
    encoding, on = config.section("encode", batches.TokenizerConfig), device.select_device()
    tokenizer = batches.load_tokenizer(teacher_folder)
    parts, files_of = config.section("parts", arrow.Partition), (prepared / "train.arrow", transfer / "transfer.arrow")
    table, more = (parts.share(arrow.read_table(file), part) for file in files_of)
    teacher, key = (
        checkpoints.load_model(teacher_folder),
        teacher_cache.cache_fingerprint(teacher_folder, encoding, settings, on),
    )
    shape = config.section("student", checkpoints.StudentConfig)
    columns, of_transfer = _needed(task, LayerMap(len(shape.layers), teacher.config.num_hidden_layers))

    def encode(some: pa.Table) -> batches.TokenizedDataset:
        return batches.tokenize(some, task, tokenizer, encoding, words=any(c.startswith("words") for c in columns))

    with recording.stage_run(
        "cache",
        params={"cache": settings, "encode": encoding},
        tags={"task": task_name, "part": str(part)},
        hashes={"rows": arrow.rows_digest(table), "teacher": key.teacher[:12]},
        scratch=scratch_of(out),
    ) as recorder:
        asked = 0
        for some, wanted in [] if verify else [(table, columns), (more, of_transfer)]:
            asked += build.build_cache(out, teacher, some, encode, wanted, key, settings, on)
        opened = teacher_cache.TeacherCache([out], key)
        sample = encode(table.take(teacher_cache.evenly_spaced(len(table), settings.verify_rows)))
        differences = opened.verify(sample, columns, teacher, settings, on) if len(sample) else {}
        print(f"{task_name}: asked about {asked} of {len(table)} training and {len(more)} transfer rows")
        print("the largest differences between live and cached:")
        print("\n".join(f"  {column:<14} {difference:.2g}" for column, difference in differences.items()))
        rows_of = {"rows": len(table), "transfer": len(more), "asked": asked}
        recorder.metrics({**rows_of, "bytes": opened.bytes, "difference": differences})
    files.clear_scratch(scratch_of(out))


def _needed(task: tasks.Task, depth: LayerMap) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the methods in params.yaml ask, each column once: of training rows, the logits in any case, and of transfer rows."""
    methods = [import_module(f"filbert.methods.{name}") for name in config.section("methods", tuple[str, ...])]
    asked = [
        (tuple(column_for_task(task.kind, column) for column in method.columns(depth)), learns_from_transfer(method))
        for method in methods
    ]
    return (
        tuple(
            dict.fromkeys((column_for_task(task.kind, "logits"), *chain.from_iterable(columns for columns, _ in asked)))
        ),
        tuple(dict.fromkeys(chain.from_iterable(columns for columns, transfer in asked if transfer))),
    )


if __name__ == "__main__":
    run(cache)
