"""Time a task's teacher and students side by side, and their exported files beside the baselines."""

from functools import partial
from pathlib import Path
from typing import Any

from filbert.data import arrow, batches, tasks
from filbert.evaluation.latency import LatencyConfig, Times, measure_latencies, time_texts
from filbert.export import baselines, inference
from filbert.export import folder as exports
from filbert.models import checkpoints
from filbert.models.size import representative_batch
from filbert.runtime import config, device, files
from filbert.tracking import run_recorder
from stages import OutFile, run, scratch_of


def latency(
    task_name: str,
    prepared: Path,
    students_folder: Path,
    teacher: Path,
    exported: Path,
    baselines_folder: Path,
    out: OutFile,
) -> None:
    """Time the teacher in TEACHER and the students that params.yaml lists, of the first seed, in STUDENTS_FOLDER on test rows of
    PREPARED: all in turn, in one process; then the files that the folder EXPORTED has of them and the baselines of
    BASELINES_FOLDER. Write the times to OUT."""
    task, settings, params = tasks.find(task_name), config.section("latency", LatencyConfig), config.read_params()
    encoding, seed = config.section("tokenizer", batches.TokenizerConfig), params["seeds"][0]
    folders = {config.TEACHER: teacher} | {
        name: students_folder / name / str(seed) for name in config.student_names(params)
    }
    test = arrow.split_names(prepared, "test")[0]
    with run_recorder.stage_run(
        "latency", params={"latency": settings}, tags={"task": task_name}, hashes={}, scratch=scratch_of(out)
    ) as recorder:
        models = {name: checkpoints.load_model(folder) for name, folder in folders.items()}
        rows = {
            name: batches.load_split(prepared, test, task, batches.load_tokenizer(folder), encoding)[1]
            for name, folder in folders.items()
        }
        found = measure_latencies(models, rows, settings)
        names = {config.TEACHER: 0} | dict.fromkeys(params["exports"], seed)
        files_of = {name: exported / name / str(number) for name, number in names.items()}
        read = arrow.texts_of(arrow.read_table(prepared / f"{test}.arrow"), task)
        texts = _time_texts(files_of, baselines.load(baselines_folder), read, settings)
        for prefix, times in (("milliseconds", found), ("text_milliseconds", texts)):
            recorder.metrics({f"{prefix}_{n}": {a: t["median"] for a, t in arms.items()} for n, arms in times.items()})
        files.write_json(
            out,
            {
                "seed": seed,
                "threads": settings.threads,
                "tokens": int(representative_batch(rows[config.TEACHER], 1).mask.sum()),
                "machine": device.machine_facts(),
                "milliseconds": found,
                "texts": texts,
            },
        )
    files.clear_scratch(scratch_of(out))


def _time_texts(
    folders: dict[str, Path],
    others: dict[str, baselines.Baseline],
    rows: list[tuple[str, ...]],
    settings: LatencyConfig,
) -> dict[str, dict[str, Times]]:
    """By batch size the times from text to answer of every exported file, as `name/file`, and of every baseline."""
    models = {
        f"{name}/{file}": inference.open_model(folder, settings.threads, file)
        for name, folder in folders.items()
        for file in (exports.FLOAT32, exports.INT8)
        if (folder / file).exists()
    }
    texts: Any = [row if len(row) > 1 else row[0] for row in rows]  # as a predictor takes them
    asked = list(models.values())[:1]  # all models of a task can answer the same texts
    readable = [text for text in texts if not any(model.problem(text) for model in asked)]
    arms: dict[str, Any] = {name: model.predict for name, model in models.items()}
    arms |= {name: partial(_answer, baseline) for name, baseline in others.items()}
    return time_texts(arms, readable, settings)


def _answer(baseline: baselines.Baseline, texts: list[Any]) -> object:
    return baseline.logits([text if isinstance(text, tuple) else (text,) for text in texts])


if __name__ == "__main__":
    run(latency)
