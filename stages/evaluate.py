"""Score a model on the test rows and measure what it costs, side by side with its teacher."""

from dataclasses import dataclass
from pathlib import Path

from filbert import config, data, device, files, measure, metrics, rows, students, tasks, tracking
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
    encoding = config.section("encode", data.EncodeConfig)
    tokenizer, model = data.load_tokenizer(folder), students.load(folder)
    tests = {
        file.stem: data.encode(rows.read_table(file), task, tokenizer, encoding)
        for file in sorted(prepared.glob("*.arrow"))
        if file.stem.startswith(("test", "validation"))
    }
    on = device.pick()
    found = {
        name: metrics.scores(task, students.logits(model, encoded, settings.batch_size, on), encoded.label)
        for name, encoded in tests.items()
    }
    model.cpu()
    models = {"teacher": students.load(teacher), "student": model}
    timed = {
        str(size): measure.latency(models, measure.typical(tests["test"], size), settings.latency)
        for size in settings.latency.batch_sizes
    }
    one = measure.typical(tests["test"], 1)
    size = measure.parameters(model)
    figures = {
        **found,
        "parameters": size,
        "bytes": measure.weight_bytes(folder),
        "multiply_adds": measure.multiply_adds(model, one),
        "smaller": measure.parameters(models["teacher"]) / size,
        "faster": {f"batch_{n}": t["teacher"]["median"] / t["student"]["median"] for n, t in timed.items()},
        "milliseconds": {f"batch_{n}": t["student"]["median"] for n, t in timed.items()},
        "steps": tracking.steps(folder / students.HISTORY),
    }
    more = {
        "shape": {"layers": model.config.num_hidden_layers, "hidden": model.config.hidden_size},
        "latency": timed,
        "tokens": int(one.mask.sum()),
        "threads": settings.latency.threads,
        "machine": device.facts(),
        "curve": tracking.curve(folder / students.HISTORY),
        "made_with": files.read_json(folder / students.MADE_WITH),
        "teacher": files.weights_hash(teacher)[:12],
    }
    with tracking.stage_run(
        "evaluate",
        params={"evaluate": settings, "encode": encoding},
        tags={"task": task_name, "method": student_name, "seed": str(seed)},
        hashes={"rows": rows.digest(rows.read_table(prepared / "test.arrow")), "model": files.weights_hash(folder)},
        scratch=scratch_of(out),
    ) as recorder:
        recorder.metrics(figures)
    files.write_json(details, {"task": task_name, "student": student_name, "seed": seed, **more})
    files.write_json(out, figures)
    files.forget(scratch_of(out))


if __name__ == "__main__":
    run(evaluate)
