"""Make one student: one task, one method, one seed."""

from importlib import import_module
from pathlib import Path

from filbert import cache, config, data, device, files, rows, students, tasks, tracking
from filbert.study import Study
from stages import run, scratch_of


def distill(
    task_name: str, method_name: str, seed: int, prepared: Path, words: Path, teacher: Path, checkpoint: Path, out: Path
) -> None:
    """Compress by METHOD_NAME: from the layers of CHECKPOINT, the rows in PREPARED and the TEACHER's WORDS on them,
    make a student of the task TASK_NAME in the folder OUT."""
    task, method = tasks.find(task_name), import_module(f"filbert.methods.{method_name}")
    settings = config.section(f"distill.{method_name}", method.Config)
    asking, encoding = config.section("cache", cache.CacheConfig), config.section("encode", data.EncodeConfig)
    tokenizer, on, scratch = data.load_tokenizer(teacher), device.pick(), scratch_of(out)
    tables = {name: rows.read_table(prepared / f"{name}.arrow") for name in ("train", "validation")}
    train, validation = (data.encode(table, task, tokenizer, encoding) for table in tables.values())
    key, shape = cache.fingerprint(teacher, encoding, on), config.section("student", students.StudentConfig)
    opened = cache.Cache(words, key)
    opened.verify(train, students.load(teacher), asking, on)
    with tracking.stage_run(
        "distill",
        params={"student": shape, "encode": encoding, **vars(settings)},
        tags={"task": task_name, "method": method_name, "seed": str(seed)},
        hashes={"rows": rows.digest(tables["train"]), "teacher": key.teacher[:12]},
        scratch=scratch,
    ) as recorder:
        recorder.dataset(tables["train"], prepared, task_name, "training")
        study = Study(task, train, validation, checkpoint, shape, opened, seed, on, scratch, recorder)
        student = method.compress(study, settings)
        with files.whole_folder(out) as making:
            students.publish(student, tokenizer, making, recorder)
    files.forget(scratch)


if __name__ == "__main__":
    run(distill)
