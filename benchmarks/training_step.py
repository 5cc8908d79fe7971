"""Where the time of a training step goes, by shape, length and number of threads, and what share of the machine's matrix
multiplication it reaches.

A step is `fit`'s own: batch, loss on labels in mixed precision, backward, clipping, AdamW. Rows are synthetic, all of one length,
their tokens drawn as words occur in text (Zipf). Times without the profiler; shares of its own time as torch.profiler has them. The
last arm compiles one shape with `torch.compile`.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.turns import machine
from filbert.data.batches import TokenizedDataset
from filbert.evaluation.tables import markdown_table
from filbert.models.bert import FilbertConfig, FilbertForSequenceClassification
from filbert.models.bilstm import BiLstmConfig, BiLstmForSequenceClassification
from filbert.models.checkpoints import forward_batch
from filbert.runtime import device
from filbert.runtime.files import write_text
from filbert.training import dropout, loop, losses
from filbert.training.optimizer import sparse_embeddings

VOCABULARY, BATCH, SQUARE = 30522, 32, 2048
CPU = torch.device("cpu")
PHASE = loop.TrainingConfig(1, BATCH, 1e-4, 0.1, "linear", 0.01, 1.0, 0, 1, dropout=False)  # as params.yaml has it
SCOPES = {"data": "data", "dropout masks": "dropout", "clip": "optimizer", "Optimizer.step#RowAdamW.step": "optimizer"}
OPERATIONS = {  # parts of an operation's name; the first that fits
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn_rnn", "mkldnn_linear"),
    "attention": ("aten::bmm", "softmax", "scaled_dot_product"),
    "dropout": ("aten::mul", "bernoulli"),
    "norms, GELU": ("layer_norm", "gelu", "tanh"),
    "casts, copies": ("aten::copy_", "_to_copy"),
    "embedding": ("embedding", "aten::index", "coalesce"),
}
COLUMNS = (
    "matrix products",
    "attention",
    "dropout",
    "norms, GELU",
    "casts, copies",
    "optimizer",
    "embedding",
    "data",
    "rest",
)


@dataclass(frozen=True)
class Shape:
    """A model that the pipeline trains."""

    name: str
    new: Callable[[], nn.Module]
    vocabulary: int = VOCABULARY


def bert(layers: int, width: int, heads: int, vocabulary: int = VOCABULARY) -> nn.Module:
    """A student or teacher."""
    config = FilbertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width,
    )  # fmt: skip
    return FilbertForSequenceClassification(config)


def bilstm() -> nn.Module:
    """XtremeDistil's student at its default sizes."""
    config = BiLstmConfig(vocab_size=VOCABULARY, kept_vocab_size=15000, embedding_size=50, lstm_size=200, hidden_size=384,
                          pooling="max")  # fmt: skip
    model = BiLstmForSequenceClassification(config)
    model.rows.copy_(torch.arange(VOCABULARY, dtype=torch.int32) % config.kept_vocab_size)
    return model


STUDENT = Shape("student 3 × 384", lambda: bert(3, 384, 12))
SHAPES = (
    Shape("teacher 6 × 384", lambda: bert(6, 384, 12)),
    STUDENT,
    Shape("student 3 × 256, 4,928 tokens", lambda: bert(3, 256, 8, 4928), 4928),
    Shape("BiLSTM 50 → 2 × 200", bilstm),
)


def rows_of(length: int, count: int, vocabulary: int) -> TokenizedDataset:
    """Synthetic rows of two classes."""
    draw = np.random.default_rng(0)
    ids = (draw.zipf(1.2, count * length) % (vocabulary - 5) + 5).astype(np.uint32)
    whole = np.arange(count)
    return TokenizedDataset(
        ids,
        np.zeros(len(ids), np.uint8),
        np.arange(count + 1) * length,
        whole % 2,
        whole.astype(np.int32),
        whole,
        pad=0,
    )


def new_step(
    model: nn.Module, length: int, vocabulary: int, batch: int = BATCH, phase: loop.TrainingConfig = PHASE
) -> Callable[[], None]:
    """A function that trains `model` for a step, as `fit` does."""
    torch.manual_seed(0)
    rows, optimizer, number = (
        rows_of(length, 64 * batch, vocabulary),
        loop.new_optimizer(model.train(), phase),
        iter(range(10**9)),
    )

    def loss(taken: Any) -> Tensor:
        return losses.cross_entropy(forward_batch(model, taken, logits_alone=True).logits, taken.label)

    def step() -> None:
        start = next(number) % 64 * batch
        with record_function("data"):
            taken = rows.batch(np.arange(start, start + batch))
        with sparse_embeddings(model, CPU):
            loop._step(model, loss, taken, 1.0, optimizer, phase, CPU)

    return step


def multiply() -> Callable[[], object]:
    """One product of two square matrices in the machine's precision: 2 SQUARE³ operations."""
    square = torch.randn(SQUARE, SQUARE, dtype=getattr(torch, device.precision(CPU)))
    out = torch.empty_like(square)
    return lambda: torch.matmul(square, square, out=out)


def operations(model: nn.Module, step: Callable[[], None], length: int) -> float:
    """Operations of a step in matrix products and attention; of an LSTM, which torch does not count, by its sizes."""
    with FlopCounterMode(display=False) as counter:
        step()
    counted = float(counter.get_total_flops())
    if isinstance(model, BiLstmForSequenceClassification):
        lstm = model.lstm
        counted += 3 * 2 * BATCH * length * 2 * 4 * lstm.hidden_size * (lstm.input_size + lstm.hidden_size)
    return counted


def seconds(step: Callable[[], None], product: Callable[[], object], least: float) -> tuple[float, float]:
    """The median times of a step and of the product, in turn, for at least so many seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in (step, step, product):
        run()
    while sum(map(sum, times)) < least or len(times[0]) < 5:
        for run, found in zip((step, product), times, strict=True):
            start = time.perf_counter()
            run()
            found.append(time.perf_counter() - start)
    return float(np.median(times[0])), float(np.median(times[1]))


@contextmanager
def scopes() -> Any:
    """Names for parts of a step that are no operation of torch's."""

    def scoped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with record_function(name):
                return call(*args)

        return run

    with (
        patch.object(dropout, "dropout_mask", scoped("dropout masks", dropout.dropout_mask)),
        patch.object(loop, "clip_gradients", scoped("clip", loop.clip_gradients)),
    ):
        yield


def shares(step: Callable[[], None], steps: int = 4) -> dict[str, float]:
    """The share of a step's time by part."""
    with scopes(), profile(activities=[ProfilerActivity.CPU]) as found:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        whole = 1e6 * (time.perf_counter() - start)
    spent: dict[str, float] = defaultdict(float)
    for event in found.events():
        spent[part_of(event)] += event.self_cpu_time_total
    spent["rest"] += whole - sum(spent.values())
    return {name: spent[name] / whole for name in COLUMNS}


def part_of(event: Any) -> str:
    """The part of a step that an event of the profiler belongs to."""
    above = event
    while above is not None:
        if above.name in SCOPES:
            return SCOPES[above.name]
        above = above.cpu_parent
    for part, names in OPERATIONS.items():
        if any(name in event.name for name in names):
            return part
    return "rest"


def measure(shape: Shape, length: int, least: float) -> list[str]:
    """A line of the table."""
    model = shape.new()
    step = new_step(model, length, shape.vocabulary)
    took, product = seconds(step, multiply(), least)
    reached = operations(model, step, length) / took / (2 * SQUARE**3 / product)
    parts = (f"{100 * share:.0f}" for share in shares(step).values())
    return [
        shape.name,
        str(length),
        str(torch.get_num_threads()),
        f"{1e3 * took:.0f}",
        f"{100 * reached:.0f} %",
        *parts,
    ]


def attention_at(length: int, least: float, tokens: int = 4096, heads: int = 12, size: int = 32) -> list[str]:
    """A line: milliseconds of attention without dropout, forward and backward, of some 4,096 tokens, by torch and written out."""
    shape = (max(1, tokens // length), heads, length, size)
    q, k, v = (torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    mask = torch.zeros(shape[0], 1, 1, length, dtype=torch.bfloat16)

    def run(attend: Callable[..., Tensor]) -> Callable[[], None]:
        return lambda: attend(q, k, v, attn_mask=mask).sum().backward()

    with patch.object(dropout, "SHORT", length):
        ours, theirs = seconds(run(dropout.attention), run(F.scaled_dot_product_attention), least)
    return [str(length), str(shape[0]), f"{1e3 * theirs:.1f}", f"{1e3 * ours:.1f}"]


def compiled(least: float, length: int = 27) -> str:
    """The student 3 × 384 with its encoder compiled, and as it is, in turn."""
    eager, model = STUDENT.new(), STUDENT.new()
    model.get_submodule("bert").compile()
    plain, faster = (new_step(each, length, VOCABULARY, phase=replace(PHASE, dropout=True)) for each in (eager, model))

    def run() -> None:
        with patch.object(
            loop, "fast_dropout", lambda *_: nullcontext()
        ):  # compiled code draws dropout by its own generator
            faster()

    start = time.perf_counter()
    run()
    compiling = time.perf_counter() - start
    ours, theirs = seconds(run, plain, least)
    return (
        f"`torch.compile` of the encoder of the student 3 × 384 at {length} tokens, one thread: {1e3 * ours:.0f} ms a step, in "
        f"turn with {1e3 * theirs:.0f} ms without; the first step, which compiles, takes {compiling:.0f} s, for one length."
    )


def main(
    out: Annotated[Path, typer.Argument(help="the Markdown file to write")],
    lengths: list[int] = [27, 128],  # noqa: B006
    threads: list[int] = [1, 2],  # noqa: B006
    least: Annotated[float, typer.Option(help="seconds of a measurement")] = 8.0,
    compile_one: Annotated[bool, typer.Option(help="also with torch.compile, for one shape")] = True,
) -> None:
    """Measure all shapes at these LENGTHS with these numbers of THREADS and write the table to OUT."""
    lines = []
    for count in threads:
        torch.set_num_threads(count)
        lines += [measure(shape, length, least) for shape in SHAPES for length in lengths]
    torch.set_num_threads(1)
    parts = [
        "# A training step: where its time goes",
        f"Measured by `python -m benchmarks.training_step`: batches of {BATCH}, {machine(CPU)}. Of the peak: operations in matrix "
        f"products and attention a second, against a product of {SQUARE} × {SQUARE} in {device.precision(CPU)} with as many "
        "threads, in turn with the steps. The other columns are per cent of a step.",
        markdown_table([["shape", "tokens", "threads", "ms a step", "of the peak", *COLUMNS], *lines]),
    ]
    short = [attention_at(length, least / 4) for length in (16, 27, 64, 128, 256, 512)]
    parts += [
        f"Attention alone, forward and backward, without dropout, one thread: written out up to {dropout.SHORT} tokens.",
        markdown_table([["tokens", "rows", "torch's, ms", "written out, ms"], *short]),
    ]
    write_text(out, "\n\n".join(parts) + "\n")
    if compile_one:
        parts.append(compiled(least))
    write_text(out, "\n\n".join(parts) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    typer.run(main)
