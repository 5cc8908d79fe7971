"""Opening a study and keeping what comes of it: what `distill` and `prune` have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from filbert.cache import read
from filbert.data import arrow, batches, sources, tasks
from filbert.methods.context import MethodContext
from filbert.models import checkpoints, size
from filbert.models.activations import column_for_task
from filbert.runtime import config, device, files
from filbert.tracking import history, recording
from filbert.training.layerwise import LayerMap
from stages import scratch_of


@dataclass(frozen=True)
class Folders:
    """What a study reads."""

    prepared: Path
    words: Path
    references: Path
    teacher: Path
    checkpoint: Path
    transfer: Path | None = None  # rows without labels, where the method learns from them
    vectors: Path | None = None
    start: Path | None = None  # a pretrained student that is trained whole, with its own tokenizer


def make(
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
    """Open the study, verify what it reads of the teacher (`columns`), `compress`, and publish the student to `out`."""
    task, on = tasks.find(task_name), device.select_device()
    of_teacher, tokenizer = (
        batches.load_tokenizer(folder) for folder in (folders.teacher, folders.start or folders.teacher)
    )
    asking, encoding = config.section("cache", read.CacheConfig), config.section("encode", batches.TokenizerConfig)
    shape = (
        checkpoints.all_layers(folders.start) if folders.start else config.section("student", checkpoints.StudentConfig)
    )
    scratch = scratch_of(out)
    key, live = read.cache_fingerprint(folders.teacher, encoding, asking, on), checkpoints.load_model(folders.teacher)
    depth = LayerMap(len(shape.layers), live.config.num_hidden_layers)
    wanted = [column_for_task(task.kind, column) for column in columns(depth)]
    spelled = any(column.startswith("words") for column in wanted)
    table, train = batches.load_split(folders.prepared, "train", task, tokenizer, encoding, spelled)
    validation = batches.load_split(folders.prepared, "validation", task, tokenizer, encoding)[1]
    nothing = train.part(np.arange(0))
    unlabelled = (
        batches.load_split(folders.transfer, "transfer", task, tokenizer, encoding, spelled)[1]
        if folders.transfer
        else nothing
    )
    opened = read.TeacherCache(config.section("parts", arrow.Partition).folders(folders.words), key)
    if wanted:
        sample = table.take(read.evenly_spaced(len(table), asking.verify_rows))
        opened.verify(batches.tokenize(sample, task, of_teacher, encoding, spelled), wanted, live, asking, on)
    with recording.stage_run(
        stage,
        params={"student": shape, "encode": encoding, **vars(settings)},
        tags={"task": task_name, "method": student_name, "seed": str(seed)},
        hashes={
            "rows": arrow.rows_digest(table),
            "teacher": key.teacher[:12],
            "words": opened.digest,
            "references": files.sha256(folders.references / "train.arrow")[:12],
            **(
                {"transfer": arrow.rows_digest(arrow.read_table(folders.transfer / "transfer.arrow"))}
                if folders.transfer
                else {}
            ),
            **({"vectors": files.sha256(folders.vectors / sources.RECORD)[:12]} if folders.vectors else {}),
            **hashes,
        },
        scratch=scratch,
    ) as recorder:
        recorder.dataset(table, folders.prepared, "training")
        study = MethodContext(
            task, train, validation, unlabelled, folders.start or folders.checkpoint, folders.teacher, shape, depth, opened, asking,
            folders.references, folders.vectors, seed, on, scratch, recorder,
        )  # fmt: skip
        student = compress(study)
        made = {"parameters": size.count_parameters(student), "steps": history.count_steps(recorder.history)}
        recorder.student(size.model_shape(student.config), made)
        with files.atomic_folder(out) as making:
            checkpoints.save_with_provenance(student, tokenizer, making, recorder)
    files.clear_scratch(scratch)
