"""Ask the teacher about every training row, once. The only stage that runs the teacher over data."""

from pathlib import Path

from filbert import cache as teacher_cache
from filbert import config, data, device, files, rows, students, tasks, tracking
from stages import run, scratch_of


def cache(task_name: str, prepared: Path, teacher_folder: Path, out: Path) -> None:
    """Append what the teacher in TEACHER_FOLDER says of the rows in PREPARED to the cache in the folder OUT."""
    task, settings = tasks.find(task_name), config.section("cache", teacher_cache.CacheConfig)
    encoding, on = config.section("encode", data.EncodeConfig), device.pick()
    table = rows.read_table(prepared / "train.arrow")
    encoded = data.encode(table, task, data.load_tokenizer(teacher_folder), encoding)
    teacher, key = students.load(teacher_folder), teacher_cache.fingerprint(teacher_folder, encoding, on)
    with tracking.stage_run(
        "cache",
        params={"cache": settings, "encode": encoding},
        tags={"task": task_name},
        hashes={"rows": rows.digest(table), "teacher": key.teacher[:12]},
        scratch=scratch_of(out),
    ) as recorder:
        asked = teacher_cache.build(out, teacher, encoded, key, settings, on)
        opened = teacher_cache.Cache(out, key)
        difference = opened.verify(encoded, teacher, settings, on)
        print(f"{task_name}: asked about {asked} of {len(encoded)} rows; live and cached differ by {difference:.2g}")
        recorder.metrics({"rows": len(encoded), "asked": asked, "largest_difference": difference})
    files.forget(scratch_of(out))


if __name__ == "__main__":
    run(cache)
