"""int8 with onnxruntime's fast kernel, whose sums overflow on x86 without VNNI, and with the exact one (docs/export.md).

Every variant of a trained model: how far its logits are from float32's on validation rows, the validation score, and the time of a
forward pass, one thread, all arms in turn. On a processor with VNNI both kernels are the same.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import typer

from benchmarks.turns import Times, in_turn, machine
from filbert.data import batches, tasks
from filbert.data.batches import Batch
from filbert.evaluation import metrics
from filbert.evaluation.tables import markdown_table
from filbert.export import gate, int8
from filbert.export.onnx import export_onnx
from filbert.export.session import processor_flags
from filbert.models.checkpoints import predict_logits
from filbert.models.size import spread_rows
from filbert.runtime import config
from filbert.runtime.files import write_text

KERNELS = {"fast": "0", "exact": "1"}
SIZES = (1, 32)


def main(task_name: str, prepared: Path, model: Path, out: Path, rounds: int = 15) -> None:
    """Write a table about the model trained in MODEL, on validation rows of PREPARED, to the Markdown file OUT."""
    task, settings = tasks.find(task_name), config.section("export", gate.ExportConfig)
    tokenizer, encoding = batches.load_tokenizer(model), config.section("tokenizer", batches.TokenizerConfig)
    train, rows = (batches.load_split(prepared, name, task, tokenizer, encoding)[1] for name in ("train", "validation"))
    few = train.select(np.arange(min(settings.calibration_rows, len(train))))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        export_onnx(model, work / "float32.onnx")
        arms = {("float32", "exact"): opened(model, work / "float32.onnx", "exact")}
        for variant, how in int8.VARIANTS.items():
            file = work / f"{variant}.onnx"
            int8.quantize(
                work / "float32.onnx", file, how, lambda: gate._inputs(work / "float32.onnx", model, few, settings)
            )
            arms |= {(variant, kernel): opened(model, file, kernel) for kernel in KERNELS}
        logits = {arm: predict_logits(run, rows, settings.batch_size, gate.CPU) for arm, run in arms.items()}
        times = {size: timed(arms, rows.batch(spread_rows(rows, size)), rounds) for size in SIZES}
    base = logits["float32", "exact"]
    lines = [
        [
            *arm, f"{np.abs(found - base).mean():.4f}", f"{100 * metrics.scores_on(task, found, rows)['score']:.2f}",
            *(f"{1e3 * min(t):.2f} / {1e3 * float(np.median(t)):.2f}" for t in (times[size][" ".join(arm)] for size in SIZES)),
        ]
        for arm, found in logits.items()
    ]  # fmt: skip
    head = [
        "file",
        "kernel",
        "logits from float32's, mean",
        "validation score",
        *(f"ms, batch {size}, minimum / median" for size in SIZES),
    ]
    write_text(
        out,
        f"{len(rows)} validation rows of {task_name}, {rounds} rounds in turn, one thread, onnxruntime {onnxruntime.__version__}; "
        f"{machine(gate.CPU)}; integer flags: {processor_flags()}.\n\n{markdown_table([head, *lines])}\n",
    )


def timed(arms: dict[tuple[str, str], gate.OnnxModel], batch: Batch, rounds: int) -> Times:
    """Seconds of a forward pass of each arm."""
    return in_turn({" ".join(arm): gate._forward(run, batch) for arm, run in arms.items()}, rounds)


def opened(model: Path, file: Path, kernel: str) -> gate.OnnxModel:
    """A file with one thread and one kernel."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", KERNELS[kernel])
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    found = gate.OnnxModel(model, file, 1)
    found.run = lambda given: session.run(None, {name: value for name, value in given.items() if name in names})[0]
    return found


if __name__ == "__main__":
    typer.run(main)
