"""Score a model on the test rows, and measure its size; validation rows were scored while it was trained."""

from dataclasses import dataclass
from pathlib import Path

from filbert.data import arrow, batches, tasks
from filbert.evaluation import metrics, predictions
from filbert.models import checkpoints, size
from filbert.runtime import config, device, files, seals
from filbert.runtime.config import PositiveInt
from filbert.tracking import run_fields, run_recorder
from filbert.tracking.history import (
    count_steps,
    last_values,
    step_budget,
    still_rising,
    validation_curve,
    validation_figures,
)
from stages import OutFile, run, scratch_of


@dataclass(frozen=True)
class EvaluateConfig:
    batch_size: PositiveInt


def evaluate(
    task_name: str,
    student_name: str,
    seed: int,
    prepared: Path,
    folder: Path,
    teacher: Path,
    out: OutFile,
    details: OutFile,
    test_rows: OutFile,
) -> None:
    """Score the model in FOLDER, a student of TEACHER, on the rows of PREPARED: figures to OUT, how it was made to DETAILS, what it
    said of each test row to TEST_ROWS."""
    task, settings = tasks.find(task_name), config.section("evaluate", EvaluateConfig)
    encoding, tokenizer = config.section("tokenizer", batches.TokenizerConfig), batches.load_tokenizer(folder)
    model = checkpoints.as_filbert(checkpoints.load_model(folder))
    names = arrow.split_names(prepared, "test")
    splits = {name: batches.load_split(prepared, name, task, tokenizer, encoding) for name in names}
    provenance, history = files.read_json(folder / checkpoints.PROVENANCE), folder / checkpoints.HISTORY
    table, test = splits[min(names)]
    with run_recorder.stage_run(
        "evaluate",
        params={"evaluate": settings, "tokenizer": encoding},
        tags={"task": task_name, "method": student_name, "seed": str(seed)},
        hashes={"rows": arrow.rows_digest(table), "model": files.weights_hash(folder)},
        scratch=scratch_of(out),
        measures=provenance,
    ) as recorder:
        recorder.dataset(table, prepared, "test")
        logits = {
            name: checkpoints.predict_logits(model, rows, settings.batch_size, device.select_device())
            for name, (_, rows) in splits.items()
        }
        scores = {name: metrics.scores_on(task, logits[name], rows) for name, (_, rows) in splits.items()}
        sizes = size.measure_size(model.cpu(), folder, checkpoints.load_model(teacher), test)
        figures = {
            **scores,
            **validation_figures(history),
            **sizes,
            "steps": count_steps(history),
            "step_budget": step_budget(history),
            "still_rising": still_rising(history),
        }
        shape = size.model_shape(model.config)
        recorder.student(shape, {"score": run_fields.test_score(figures), **run_fields.cost_fields(figures), **scores})
    tests = {name: (logits[name], rows) for name, (_, rows) in splits.items()}
    predictions.write_predictions(test_rows, task, tests)
    more = {
        "test_rows": seals.xxh3(test_rows),
        "shape": shape,
        "machine": device.machine_facts(),
        "curve": validation_curve(history),
        "information": last_values(history, "information"),  # of a student that reads references
        "provenance": provenance,
        "teacher": files.weights_hash(teacher)[:12],
    }
    files.write_json(details, {"task": task_name, "student": student_name, "seed": seed, **more})
    files.write_json(out, figures)
    files.clear_scratch(scratch_of(out))


if __name__ == "__main__":
    run(evaluate)
