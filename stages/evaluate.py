"""Score a model on the test rows and measure what it costs, side by side with its teacher."""

from dataclasses import dataclass
from pathlib import Path

from filbert.data import arrow, batches, tasks
from filbert.evaluation import cost, metrics
from filbert.models import checkpoints, size
from filbert.runtime import config, device, files
from filbert.runtime.config import PositiveInt
from filbert.tracking import recording, run_fields
from filbert.tracking.history import count_steps, last_values, validation_curve
from stages import run, scratch_of


@dataclass(frozen=True)
class EvaluateConfig:
    batch_size: PositiveInt
    latency: cost.LatencyConfig


def evaluate(
    task_name: str, student_name: str, seed: int, prepared: Path, folder: Path, teacher: Path, out: Path, details: Path
) -> None:
    """Score the model in FOLDER on the test rows of PREPARED; figures to OUT, all that was measured to DETAILS."""
    task, settings = tasks.find(task_name), config.section("evaluate", EvaluateConfig)
    encoding, tokenizer, model = (
        config.section("tokenizer", batches.TokenizerConfig),
        batches.load_tokenizer(folder),
        checkpoints.load_model(folder),
    )
    names = sorted(file.stem for file in prepared.glob("*.arrow") if file.stem.startswith(("test", "validation")))
    splits = {name: batches.load_split(prepared, name, task, tokenizer, encoding) for name in names}
    provenance = files.read_json(folder / checkpoints.PROVENANCE)
    test = splits[min(name for name in names if name.startswith("test"))]  # the one whose rows are timed
    with recording.stage_run(
        "evaluate",
        params={"evaluate": settings, "tokenizer": encoding},
        tags={"task": task_name, "method": student_name, "seed": str(seed)},
        hashes={"rows": arrow.rows_digest(test[0]), "model": files.weights_hash(folder)},
        scratch=scratch_of(out),
        measures=provenance,
    ) as recorder:
        recorder.dataset(test[0], prepared, "test")
        answers = {
            name: checkpoints.predict_logits(model, e, settings.batch_size, device.select_device())
            for name, (_, e) in splits.items()
        }
        found = {name: metrics.scores_on(task, answers[name], encoded) for name, (_, encoded) in splits.items()}
        of_teacher = batches.tokenize(test[0], task, batches.load_tokenizer(teacher), encoding)
        measured = cost.measure_cost(
            model.cpu(), folder, checkpoints.load_model(teacher), test[1], of_teacher, settings.latency
        )
        history = folder / checkpoints.HISTORY
        figures = {**found, **measured.figures, "steps": count_steps(history)}
        shape = size.model_shape(model.config)
        recorder.student(shape, {"score": run_fields.test_score(figures), **run_fields.cost_fields(figures), **found})
    more = {
        "shape": shape,
        "latency": measured.latency,
        "tokens": measured.tokens,
        "threads": settings.latency.threads,
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
