"""Cache the teacher's outputs on every training and transfer row. The only stage that runs the teacher over data."""

from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from filbert.cache import imported
from filbert.cache.build import build_cache
from filbert.cache.teacher_cache import CacheConfig, TeacherCache, cache_fingerprint
from filbert.data import arrow, batches, tasks
from filbert.models import checkpoints
from filbert.runtime import config, device, files
from filbert.tracking import run_recorder
from filbert.training.layerwise import CacheColumnsConfig, LayerMap
from stages import CacheFolder, run, scratch_of


def cache(
    task_name: str,
    index: int,
    prepared: Path,
    transfer: Path,
    teacher_folder: Path,
    out: CacheFolder,
    verify: Annotated[bool, typer.Option(help="only compare the cache with the live teacher on a sample")] = False,
) -> None:
    """Append the columns that `cache_columns` names, of the teacher in TEACHER_FOLDER, for the training rows in PREPARED and the
    rows in TRANSFER that belong to partition INDEX, to the cache in the folder OUT; then verify it on a sample."""
    task, settings = tasks.find(task_name), config.section("cache", CacheConfig)
    encoding, on = config.section("tokenizer", batches.TokenizerConfig), device.select_device()
    tokenizer, partition = batches.load_tokenizer(teacher_folder), config.section("partitions", arrow.Partition)
    train, unlabelled = (
        partition.share(arrow.read_table(file), index)
        for file in (prepared / "train.arrow", transfer / "transfer.arrow")
    )
    teacher: Any = checkpoints.as_filbert(checkpoints.load_model(teacher_folder))
    key = cache_fingerprint(teacher_folder, encoding, settings, on)
    layers = len(config.section("student", checkpoints.StudentConfig).layers)
    wanted = config.section("cache_columns", CacheColumnsConfig)
    columns, more = wanted.expand(LayerMap(layers, teacher.config.num_hidden_layers), task.kind)
    if task.teacher_columns:
        columns = more = imported.COLUMNS
    teacher, key, join = imported.answering(teacher, key, prepared, task)

    def tokenize(rows: pa.Table) -> batches.TokenizedDataset:
        words = any(column.startswith("words") for column in columns)
        return join(batches.tokenize(rows, task, tokenizer, encoding, words))

    with run_recorder.stage_run(
        "cache",
        params={"cache": settings, "tokenizer": encoding},
        tags={"task": task_name, "partition": str(index)},
        hashes={"rows": arrow.rows_digest(train), "teacher": key.teacher[:12]},
        scratch=scratch_of(out),
    ) as recorder:
        predicted = 0
        for rows, names in [] if verify else [(train, columns), (unlabelled, more)]:
            predicted += build_cache(out, teacher, rows, tokenize, names, key, settings, on)
        opened = TeacherCache([out], key)
        sample = tokenize(train.take(arrow.evenly_spaced(len(train), settings.verify_rows)))
        differences = opened.verify(sample, columns, teacher, settings, on) if len(sample) else {}
        print(
            f"{task_name}: the teacher predicted {predicted} of {len(train)} training and {len(unlabelled)} transfer rows"
        )
        print("largest difference between live teacher and cache:")
        print("\n".join(f"  {column:<14} {difference:.2g}" for column, difference in differences.items()))
        rows_of = {"rows": len(train), "transfer": len(unlabelled), "predicted": predicted}
        recorder.metrics({**rows_of, "bytes": opened.bytes, "difference": differences})
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(cache)
