"""Time a task's teacher and students side by side."""

from pathlib import Path

from filbert.data import batches, tasks
from filbert.evaluation.latency import LatencyConfig, measure_latencies
from filbert.models import checkpoints
from filbert.models.size import representative_batch
from filbert.runtime import config, device, files
from filbert.tracking import run_recorder
from stages import OutFile, run, scratch_of


def latency(task_name: str, prepared: Path, students_folder: Path, teacher: Path, out: OutFile) -> None:
    """Time the teacher in TEACHER and the students that params.yaml lists, of the first seed, in STUDENTS_FOLDER on test rows of
    PREPARED: all in turn, in one process. Write the times to OUT."""
    task, settings, params = tasks.find(task_name), config.section("latency", LatencyConfig), config.read_params()
    encoding, seed = config.section("tokenizer", batches.TokenizerConfig), params["seeds"][0]
    folders = {config.TEACHER: teacher} | {
        name: students_folder / name / str(seed) for name in config.student_names(params)
    }
    test = min(file.stem for file in prepared.glob("test*.arrow"))
    with run_recorder.stage_run(
        "latency", params={"latency": settings}, tags={"task": task_name}, hashes={}, scratch=scratch_of(out)
    ) as recorder:
        models = {name: checkpoints.load_model(folder) for name, folder in folders.items()}
        rows = {
            name: batches.load_split(prepared, test, task, batches.load_tokenizer(folder), encoding)[1]
            for name, folder in folders.items()
        }
        found = measure_latencies(models, rows, settings)
        recorder.metrics(
            {f"milliseconds_{size}": {n: t["median"] for n, t in arms.items()} for size, arms in found.items()}
        )
        files.write_json(
            out,
            {
                "seed": seed,
                "threads": settings.threads,
                "tokens": int(representative_batch(rows[config.TEACHER], 1).mask.sum()),
                "machine": device.machine_facts(),
                "milliseconds": found,
            },
        )
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(latency)
