"""Score a model on the test rows and measure what it costs, side by side with its teacher."""

from dataclasses import dataclass
from pathlib import Path

from filbert import compared, config, data, device, files, measure, metrics, rows, students, tasks, tracking
from stages import run, scratch_of


@dataclass(frozen=True)
class EvaluateConfig:
    batch_size: int
    latency: measure.LatencyConfig


def evaluate(
    task_name: str, student_name: str, seed: int, prepared: Path, folder: Path, teacher: Path, out: Path, details: Path
) -> None:
    """Score the model in FOLDER on the test rows of PREPARED; figures to OUT, all that was measured to DETAILS."""
    task, settings = tasks.find(task_name), config.section("evaluate", EvaluateConfig)
    encoding, tokenizer, model = (
        config.section("encode", data.EncodeConfig),
        data.load_tokenizer(folder),
        students.load(folder),
    )
    names = sorted(file.stem for file in prepared.glob("*.arrow") if file.stem.startswith(("test", "validation")))
    splits = {name: data.open_split(prepared, name, task, tokenizer, encoding) for name in names}
    made_with = files.read_json(folder / students.MADE_WITH)
    test = splits[min(name for name in names if name.startswith("test"))]  # the one whose rows are timed
    with tracking.stage_run(
        "evaluate",
        params={"evaluate": settings, "encode": encoding},
        tags={"task": task_name, "method": student_name, "seed": str(seed)},
        hashes={"rows": rows.digest(test[0]), "model": files.weights_hash(folder)},
        scratch=scratch_of(out),
        of=made_with,
    ) as recorder:
        recorder.dataset(test[0], prepared, "test")
        answers = {
            name: students.logits(model, e, settings.batch_size, device.pick()) for name, (_, e) in splits.items()
        }
        found = {name: metrics.scores_on(task, answers[name], encoded) for name, (_, encoded) in splits.items()}
        of_teacher = data.encode(test[0], task, data.load_tokenizer(teacher), encoding)
        cost = measure.cost(model.cpu(), folder, students.load(teacher), test[1], of_teacher, settings.latency)
        history = folder / students.HISTORY
        figures = {**found, **cost.figures, "steps": tracking.steps(history)}
        shape = measure.shape(model.config)
        recorder.student(shape, {"score": compared.score(figures), **compared.costs(figures), **found})
    more = {
        "shape": shape,
        "latency": cost.latency,
        "tokens": cost.tokens,
        "threads": settings.latency.threads,
        "machine": device.facts(),
        "curve": tracking.curve(history),
        "information": tracking.last(history, "information"),  # of a student that reads references
        "made_with": made_with,
        "teacher": files.weights_hash(teacher)[:12],
    }
    files.write_json(details, {"task": task_name, "student": student_name, "seed": seed, **more})
    files.write_json(out, figures)
    files.forget(scratch_of(out))


if __name__ == "__main__":
    run(evaluate)
