"""Ask the teacher about every training and transfer row, once. The only stage that runs the teacher over data."""

from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from filbert import cache as teacher_cache
from filbert import config, data, device, files, fill, rows, students, tasks, tracking
from filbert.columns import of_task
from filbert.layerwise import Depth
from filbert.study import learns_from_transfer
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
    encoding, on = config.section("encode", data.EncodeConfig), device.pick()
    tokenizer = data.load_tokenizer(teacher_folder)
    parts, files_of = config.section("parts", rows.Parts), (prepared / "train.arrow", transfer / "transfer.arrow")
    table, more = (parts.share(rows.read_table(file), part) for file in files_of)
    teacher, key = students.load(teacher_folder), teacher_cache.fingerprint(teacher_folder, encoding, settings, on)
    shape = config.section("student", students.StudentConfig)
    columns, of_transfer = _needed(task, Depth(len(shape.layers), teacher.config.num_hidden_layers))

    def encode(some: pa.Table) -> data.Encoded:
        return data.encode(some, task, tokenizer, encoding, words=any(c.startswith("words") for c in columns))

    with tracking.stage_run(
        "cache",
        params={"cache": settings, "encode": encoding},
        tags={"task": task_name, "part": str(part)},
        hashes={"rows": rows.digest(table), "teacher": key.teacher[:12]},
        scratch=scratch_of(out),
    ) as recorder:
        asked = 0
        for some, wanted in [] if verify else [(table, columns), (more, of_transfer)]:
            asked += fill.fill(out, teacher, some, encode, wanted, key, settings, on)
        opened = teacher_cache.Cache([out], key)
        sample = encode(table.take(teacher_cache.sample_of(len(table), settings.verify_rows)))
        differences = opened.verify(sample, columns, teacher, settings, on) if len(sample) else {}
        print(f"{task_name}: asked about {asked} of {len(table)} training and {len(more)} transfer rows")
        print("the largest differences between live and cached:")
        print("\n".join(f"  {column:<14} {difference:.2g}" for column, difference in differences.items()))
        rows_of = {"rows": len(table), "transfer": len(more), "asked": asked}
        recorder.metrics({**rows_of, "bytes": opened.bytes, "difference": differences})
    files.forget(scratch_of(out))


def _needed(task: tasks.Task, depth: Depth) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the methods in params.yaml ask, each column once: of training rows, the logits in any case, and of transfer rows."""
    methods = [import_module(f"filbert.methods.{name}") for name in config.section("methods", tuple[str, ...])]
    asked = [
        (tuple(of_task(task.kind, column) for column in method.columns(depth)), learns_from_transfer(method))
        for method in methods
    ]
    return (
        tuple(dict.fromkeys((of_task(task.kind, "logits"), *chain.from_iterable(columns for columns, _ in asked)))),
        tuple(dict.fromkeys(chain.from_iterable(columns for columns, transfer in asked if transfer))),
    )


if __name__ == "__main__":
    run(cache)
