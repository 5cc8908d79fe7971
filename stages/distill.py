"""Make one student: one task, one method, one seed."""

from importlib import import_module
from pathlib import Path

from filbert import cache, config, data, device, files, rows, students, tasks, tracking
from filbert.layerwise import Depth
from filbert.study import Study
from stages import run, scratch_of


def distill(
    task_name: str,
    method_name: str,
    seed: int,
    prepared: Path,
    words: Path,
    references: Path,
    teacher: Path,
    checkpoint: Path,
    out: Path,
) -> None:
    """Compress by METHOD_NAME: from the layers of CHECKPOINT, the rows in PREPARED, the TEACHER's WORDS on them and their
    REFERENCES, make a student of the task TASK_NAME in the folder OUT."""
    task, method = tasks.find(task_name), import_module(f"filbert.methods.{method_name}")
    settings = config.section(f"distill.{method_name}", method.Config)
    asking, encoding = config.section("cache", cache.CacheConfig), config.section("encode", data.EncodeConfig)
    tokenizer, on, scratch = data.load_tokenizer(teacher), device.pick(), scratch_of(out)
    key, shape = cache.fingerprint(teacher, encoding, asking, on), config.section("student", students.StudentConfig)
    live = students.load(teacher)
    depth = Depth(len(shape.layers), live.config.num_hidden_layers)
    columns = method.columns(depth)
    spelled = any(column.startswith("words") for column in columns)
    table, train = data.open_split(prepared, "train", task, tokenizer, encoding, spelled)
    validation = data.open_split(prepared, "validation", task, tokenizer, encoding)[1]
    opened = cache.Cache(words, key)
    opened.verify(train.part(cache.sample_of(len(train), asking.verify_rows)), columns, live, asking, on)
    with tracking.stage_run(
        "distill",
        params={"student": shape, "encode": encoding, **vars(settings)},
        tags={"task": task_name, "method": method_name, "seed": str(seed)},
        hashes={
            "rows": rows.digest(table),
            "teacher": key.teacher[:12],
            "words": opened.digest,
            "references": files.sha256(references / "train.arrow")[:12],
        },
        scratch=scratch,
    ) as recorder:
        recorder.dataset(table, prepared, task_name, "training")
        study = Study(
            task, train, validation, checkpoint, shape, depth, opened, references, seed, on, scratch, recorder
        )
        student = method.compress(study, settings)
        with files.whole_folder(out) as making:
            students.publish(student, tokenizer, making, recorder)
    files.forget(scratch)


if __name__ == "__main__":
    run(distill)
