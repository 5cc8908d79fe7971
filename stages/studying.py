"""Opening a study and keeping what comes of it: what `distill` and `prune` have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from filbert import cache, config, data, device, files, measure, rows, sources, students, tasks, tracking
from filbert.columns import of_task
from filbert.layerwise import Depth
from filbert.study import Study
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
    columns: Callable[[Depth], tuple[str, ...]],
    compress: Callable[[Study], PreTrainedModel],
    hashes: dict[str, str],
) -> None:
    """Open the study, verify what it reads of the teacher (`columns`), `compress`, and publish the student to `out`."""
    task, on = tasks.find(task_name), device.pick()
    of_teacher, tokenizer = (
        data.load_tokenizer(folder) for folder in (folders.teacher, folders.start or folders.teacher)
    )
    asking, encoding = config.section("cache", cache.CacheConfig), config.section("encode", data.EncodeConfig)
    shape = students.whole(folders.start) if folders.start else config.section("student", students.StudentConfig)
    scratch = scratch_of(out)
    key, live = cache.fingerprint(folders.teacher, encoding, asking, on), students.load(folders.teacher)
    depth = Depth(len(shape.layers), live.config.num_hidden_layers)
    wanted = [of_task(task.kind, column) for column in columns(depth)]
    spelled = any(column.startswith("words") for column in wanted)
    table, train = data.open_split(folders.prepared, "train", task, tokenizer, encoding, spelled)
    validation = data.open_split(folders.prepared, "validation", task, tokenizer, encoding)[1]
    nothing = train.part(np.arange(0))
    unlabelled = (
        data.open_split(folders.transfer, "transfer", task, tokenizer, encoding, spelled)[1]
        if folders.transfer
        else nothing
    )
    opened = cache.Cache(config.section("parts", rows.Parts).folders(folders.words), key)
    if wanted:
        sample = table.take(cache.sample_of(len(table), asking.verify_rows))
        opened.verify(data.encode(sample, task, of_teacher, encoding, spelled), wanted, live, asking, on)
    with tracking.stage_run(
        stage,
        params={"student": shape, "encode": encoding, **vars(settings)},
        tags={"task": task_name, "method": student_name, "seed": str(seed)},
        hashes={
            "rows": rows.digest(table),
            "teacher": key.teacher[:12],
            "words": opened.digest,
            "references": files.sha256(folders.references / "train.arrow")[:12],
            **(
                {"transfer": rows.digest(rows.read_table(folders.transfer / "transfer.arrow"))}
                if folders.transfer
                else {}
            ),
            **({"vectors": files.sha256(folders.vectors / sources.RECORD)[:12]} if folders.vectors else {}),
            **hashes,
        },
        scratch=scratch,
    ) as recorder:
        recorder.dataset(table, folders.prepared, "training")
        study = Study(
            task, train, validation, unlabelled, folders.start or folders.checkpoint, folders.teacher, shape, depth, opened, asking,
            folders.references, folders.vectors, seed, on, scratch, recorder,
        )  # fmt: skip
        student = compress(study)
        made = {"parameters": measure.parameters(student), "steps": tracking.steps(recorder.history)}
        recorder.student(measure.shape(student.config), made)
        with files.whole_folder(out) as making:
            students.publish(student, tokenizer, making, recorder)
    files.forget(scratch)
