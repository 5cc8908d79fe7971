"""Export a teacher or student: ONNX in float32, checked on logits, and int8 where it stays good; calibrated, with a model card."""

import dataclasses
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from filbert.data import arrow, batches, tasks
from filbert.data.batches import TokenizedDataset
from filbert.data.tasks import CLASSES, Task
from filbert.evaluation import metrics
from filbert.evaluation.latency import LatencyConfig
from filbert.export import calibration, card, gate, onnx
from filbert.export import folder as folders
from filbert.export.folder import ModelCard
from filbert.export.gate import Answers, ExportConfig
from filbert.export.references import FOLDER as STORE
from filbert.export.session import processor_flags
from filbert.models import checkpoints
from filbert.runtime import config, device, files
from filbert.tracking import run_recorder
from stages import OutFile, OutFolder, run, scratch_of

PACKAGES = ("torch", "onnx", "onnxruntime", "tokenizers")


def export(
    task_name: str, student_name: str, seed: int, prepared: Path, folder: Path, out: OutFolder, figures: OutFile
) -> None:
    """Write the model in FOLDER to the folder OUT as files that onnxruntime runs, chosen on the validation rows of PREPARED.

    What was measured of them goes to FIGURES, too."""
    task, settings = tasks.find(task_name), config.section("export", ExportConfig)
    timing = config.section("latency", LatencyConfig)
    encoding, tokenizer = config.section("tokenizer", batches.TokenizerConfig), batches.load_tokenizer(folder)
    names = arrow.split_names(prepared, "test", "validation")
    splits = {name: batches.load_split(prepared, name, task, tokenizer, encoding) for name in names}
    table, validation = splits["validation"]
    few = arrow.read_table(prepared / "train.arrow").slice(0, settings.calibration_rows)
    provenance = files.read_json(folder / checkpoints.PROVENANCE)
    with (
        run_recorder.stage_run(
            "export",
            params={"export": settings, "latency": timing},
            tags={"task": task_name, "method": student_name, "seed": str(seed)},
            hashes={"rows": arrow.rows_digest(table), "model": files.weights_hash(folder)},
            scratch=scratch_of(out),
            measures=provenance,
        ) as recorder,
        files.atomic_folder(out) as making,
        tempfile.TemporaryDirectory(dir=making.parent, prefix=files.MAKING, suffix=f"-{out.name}") as work,
    ):
        file = making / folders.FLOAT32
        onnx.export_onnx(folder, file)
        check = onnx.check_logits(folder, file, validation, settings.tolerance, alone=settings.check_alone)
        shutil.copyfile(folder / folders.TOKENIZER, making / folders.TOKENIZER)
        if (folder / STORE).exists():
            shutil.copytree(folder / STORE, making / STORE)
        answers = Answers(making, settings.batch_size)
        calibrating = batches.tokenize(few, task, tokenizer, encoding)
        passed, variants = gate.choose_int8(file, answers, Path(work), task, validation, calibrating, settings, timing)
        if passed:
            shutil.copyfile(passed, making / folders.INT8)
        made = ({folders.INT8: passed} if passed else {}) | {folders.FLOAT32: file}
        published = next(iter(made))
        logits = {
            name: {split: answers(path, rows) for split, (_, rows) in splits.items()} for name, path in made.items()
        }
        record = {
            "task": task_name,
            "student": student_name,
            "seed": seed,
            "published": published,
            "files": {
                name: {
                    **{split: _scores(task, logits[name][split], rows) for split, (_, rows) in splits.items()},
                    "bytes": deployed_bytes(making, name),
                    "model_bytes": (making / name).stat().st_size,
                }
                for name in made
            },
            "threads": timing.threads,
            "logits": dataclasses.asdict(check) | {"rows_alone": min(settings.check_alone, len(validation))},
            "variants": [variant.to_json() for variant in variants],
            "max_drop": settings.max_drop,
            "calibration": {name: _calibrate(task, logits[name]["validation"], validation, settings) for name in made},
            "machine": device.machine_facts() | {"integer_flags": processor_flags()},
            "versions": {name: version(name) for name in PACKAGES},
            "rows": arrow.rows_digest(table),
            "model": files.weights_hash(folder)[:12],
            "provenance": provenance,
        }
        files.write_json(making / folders.RECORD, record)
        about = ModelCard(
            task=task_name, student=student_name, seed=seed, kind=str(task.kind), columns=task.columns, labels=task.labels,
            max_length=encoding.max_length, pad=tokenizer.pad_token_id or 0, model=published,
            flags=processor_flags() if passed else "", **card.calibrated(record, published),
        )  # fmt: skip
        folders.write_card(about, making)
        files.write_text(making / "README.md", card.model_card(about, task, tasks.source_of(task), record))
        recorder.metrics({folders.NAMES[name]: measured for name, measured in record["files"].items()})
    files.write_json(figures, record)
    files.clear_scratch(scratch_of(out))


def _calibrate(task: Task, logits: np.ndarray, rows: TokenizedDataset, settings: ExportConfig) -> dict[str, Any] | None:
    """What was found; nothing for tasks whose rows have no class."""
    if task.kind not in CLASSES:
        return None
    return dataclasses.asdict(calibration.calibrate(logits, rows.label, settings.precisions))


def _scores(task: Task, logits: np.ndarray, rows: TokenizedDataset) -> dict[str, Any]:
    """The scores on one split, and where it is an accuracy its interval over rows."""
    found: dict[str, Any] = metrics.scores_on(task, logits, rows)
    if task.metrics == ("accuracy",):
        found["interval"] = card.mean_interval((metrics.predictions(task, logits) == rows.label).astype(float).tolist())
    return found


def deployed_bytes(folder: Path, model: str) -> int:
    """What has to be deployed: the model, its tokenizer and the references that it reads."""
    parts = [folder / model, folder / folders.TOKENIZER, *(folder / STORE).rglob("*")]
    return sum(part.stat().st_size for part in parts if part.is_file())


if __name__ == "__main__":
    run(export)
