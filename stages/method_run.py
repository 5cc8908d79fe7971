"""Running a method on files: what `distill` and `prune` share. Open its context, verify the cache, train, save the student."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from filbert.cache import imported
from filbert.cache.teacher_cache import CacheConfig, CacheError, TeacherCache, cache_fingerprint
from filbert.data import arrow, batches, sources, tasks
from filbert.methods.context import MethodContext
from filbert.models import checkpoints, size
from filbert.models.intermediate_outputs import column_for_task
from filbert.runtime import config, device, files
from filbert.tracking import history, run_recorder
from filbert.training.layerwise import LayerMap
from stages import scratch_of


@dataclass(frozen=True)
class Folders:
    """What a method reads."""

    prepared: Path
    cache: Path
    references: Path
    teacher: Path
    checkpoint: Path
    transfer: Path | None = None  # rows without labels, where the method learns from them
    word_vectors: Path | None = None
    start: Path | None = None  # a pretrained student that is trained whole, with its own tokenizer


def run_method(
    stage: str,
    task_name: str,
    student_name: str,
    seed: int,
    folders: Folders,
    out: Path,
    settings: Any,
    columns: Callable[[LayerMap], tuple[str, ...]],
    compress: Callable[[MethodContext], PreTrainedModel],
    hashes: dict[str, str],
) -> None:
    """Open the context, verify the `columns` of the teacher's cache, `compress`, and save the student to `out`."""
    task, on, scratch = tasks.find(task_name), device.select_device(), scratch_of(out)
    cache_config, encoding = config.section("cache", CacheConfig), config.section("tokenizer", batches.TokenizerConfig)
    shape = config.section("student", checkpoints.StudentConfig)
    if folders.start:
        shape = checkpoints.all_layers(folders.start)
    tokenizer = batches.load_tokenizer(folders.start or folders.teacher)
    teacher: Any = checkpoints.load_model(folders.teacher)
    layer_map = LayerMap(len(shape.layers), teacher.config.num_hidden_layers)
    wanted = [column_for_task(task.kind, column) for column in columns(layer_map)]
    words = any(column.startswith("words") for column in wanted)
    table, train = batches.load_split(folders.prepared, "train", task, tokenizer, encoding, words)
    validation = batches.load_split(folders.prepared, "validation", task, tokenizer, encoding)[1]
    transfer = train.select(np.arange(0))
    if folders.transfer:
        unlabelled, transfer = batches.load_split(folders.transfer, "transfer", task, tokenizer, encoding, words)
        hashes = {"transfer_rows": arrow.rows_digest(unlabelled)} | hashes
    if folders.word_vectors:
        hashes = {"word_vectors": files.sha256(folders.word_vectors / sources.RECORD)[:12]} | hashes
    key = cache_fingerprint(folders.teacher, encoding, cache_config, on)
    if task.teacher_columns:
        imported.check_columns(student_name, wanted)
    teacher, key, join = imported.answering(teacher, key, folders.prepared, task)
    cache = TeacherCache(config.section("partitions", arrow.Partition).folders(folders.cache), key)
    if wanted and cache_config.verify_rows:
        sample = table.take(arrow.evenly_spaced(len(table), cache_config.verify_rows))
        rows = join(batches.tokenize(sample, task, batches.load_tokenizer(folders.teacher), encoding, words))
        try:
            cache.verify(rows, wanted, teacher, cache_config, on)
        except CacheError as error:
            raise CacheError(f"{error}. Columns to cache are listed under `cache_columns` in params.yaml") from error
    del teacher  # from here on its outputs are read from the cache
    with run_recorder.stage_run(
        stage,
        params={"student": shape, "tokenizer": encoding, **vars(settings)},
        tags={"task": task_name, "method": student_name, "seed": str(seed)},
        hashes={
            "rows": arrow.rows_digest(table),
            "teacher": key.teacher[:12],
            "cache": cache.digest,
            "references": files.sha256(folders.references / "train.arrow")[:12],
            **hashes,
        },
        scratch=scratch,
    ) as recorder:
        recorder.dataset(table, folders.prepared, "training")
        context = MethodContext(
            task, train, validation, transfer, folders.start or folders.checkpoint, folders.teacher, shape, layer_map, cache,
            cache_config, folders.references, folders.word_vectors, seed, on, scratch, recorder, folders.start,
        )  # fmt: skip
        student = compress(context)
        figures = {"parameters": size.count_parameters(student), "steps": history.count_steps(recorder.history)}
        recorder.student(size.model_shape(student.config), figures)
        with files.atomic_folder(out) as making:
            checkpoints.save_with_provenance(student, tokenizer, making, recorder)
    files.clear_scratch(scratch)
