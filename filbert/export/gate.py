"""The gate before int8: the fastest variant whose validation score is close enough to float32 is published, or none.

int8 answers depend on what else is in a batch, because activations are quantised together; a variant's score is therefore the lower
of that in batches and that of rows alone.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from filbert import FilbertError
from filbert.data.batches import TokenizedDataset
from filbert.data.tasks import Task
from filbert.evaluation import metrics
from filbert.evaluation.latency import LatencyConfig, Times
from filbert.export import int8
from filbert.export.inference import onnx_runner
from filbert.models.checkpoints import predict_logits
from filbert.models.size import spread_rows
from filbert.runtime.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt

FLOAT32 = "float32"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExportConfig:
    """How models are exported, quantised and scored."""

    tolerance: Positive  # largest difference of a logit to Torch's
    check_alone: (
        NonNegativeInt  # validation rows whose logits are also compared alone; all are in batches of mixed length
    )
    max_drop: NonNegative  # points of the validation score that int8 may cost
    variants: tuple[str, ...]  # names of int8.VARIANTS
    score_alone: NonNegativeInt  # validation rows that int8 is also scored on alone
    calibration_rows: PositiveInt  # training rows that static ranges come from
    batch_size: PositiveInt
    precisions: tuple[Fraction, ...]  # for which a threshold is found

    def __post_init__(self) -> None:
        if unknown := [name for name in self.variants if name not in int8.VARIANTS]:
            raise FilbertError(f"variants: expected some of {', '.join(int8.VARIANTS)}, got {', '.join(unknown)}")


class OnnxModel(nn.Module):
    """An ONNX file with a model's face, so that it is scored as Torch models are."""

    def __init__(self, folder: Path, file: Path, threads: int | None = None):
        super().__init__()
        self.run = onnx_runner(folder, str(file.absolute()), threads)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> SequenceClassifierOutput:
        given = {"input_ids": input_ids, "attention_mask": attention_mask.long(), "token_type_ids": token_type_ids}
        found = self.run({name: value.numpy() for name, value in given.items()})
        return SequenceClassifierOutput(logits=torch.from_numpy(found))


class Answers:
    """Logits of exported files on rows, computed once: the gate and the scores need the same."""

    def __init__(self, store: Path, batch_size: int):
        self.store, self.batch_size = store, batch_size
        self.found: dict[tuple[Path, int], np.ndarray] = {}

    def __call__(self, file: Path, rows: TokenizedDataset) -> np.ndarray:
        """Logits [N, C] in batches of rows of like length."""
        key = file, id(rows)
        if key not in self.found:
            self.found[key] = predict_logits(OnnxModel(self.store, file), rows, self.batch_size, CPU)
        return self.found[key]


@dataclass(frozen=True)
class VariantRecord:
    """What was found of one variant."""

    variant: str
    verdict: str  # published, refused, not tried or failed
    why: str
    bytes: int
    milliseconds: dict[str, Times]  # of the forward pass, by batch size
    score: float | None = None  # on validation rows, in points
    drop: float | None = None  # below float32's

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def choose_int8(
    file: Path,
    answers: Answers,
    work: Path,
    task: Task,
    rows: TokenizedDataset,
    calibration: TokenizedDataset,
    config: ExportConfig,
    timing: LatencyConfig,
) -> tuple[Path | None, list[VariantRecord]]:
    """Quantise the graph `file` in every way that the settings name; the file that passes, and a record of each, fastest first.

    Args:
        answers: to the graph and its variants; it knows the folder with the references that a model reads.
        work: a folder for the variants.
        rows: validation rows.
        calibration: training rows.
    """
    store, files, failed = answers.store, {FLOAT32: file}, []
    for name in config.variants:
        try:
            int8.quantize(
                file, work / f"{name}.onnx", int8.VARIANTS[name], lambda: _inputs(file, store, calibration, config)
            )
            OnnxModel(store, work / f"{name}.onnx")
            files[name] = work / f"{name}.onnx"
        except FilbertError as error:
            failed.append(VariantRecord(name, "failed", str(error).splitlines()[0], 0, {}))
    times = time_models({name: OnnxModel(store, made, timing.threads) for name, made in files.items()}, rows, timing)
    speed = {
        name: np.prod([found["minimum"] for found in times[name].values()]) for name in files
    }  # the least disturbed rounds
    order = sorted(files, key=lambda name: speed[name])
    reference = score_model(file, answers, task, rows, config)
    records, passed = [], None
    for place, name in enumerate(order):
        if name == FLOAT32:
            continue
        size, found = files[name].stat().st_size, times[name]
        if passed or place > order.index(FLOAT32):
            why = f"{passed} is faster and passed" if passed else "float32 is faster"
            records.append(VariantRecord(name, "not tried", why, size, found))
            continue
        score = score_model(files[name], answers, task, rows, config)
        drop = reference - score
        passed = name if drop <= config.max_drop else None
        verdict, why = (
            "published" if passed else "refused",
            f"{drop:+.2f} points below float32, {config.max_drop:g} allowed",
        )
        records.append(VariantRecord(name, verdict, why, size, found, score, drop))
    base = VariantRecord(FLOAT32, "published", "the reference", file.stat().st_size, times[FLOAT32], reference, 0.0)
    return files[passed] if passed else None, [base, *records, *failed]


def score_model(file: Path, answers: Answers, task: Task, rows: TokenizedDataset, config: ExportConfig) -> float:
    """The validation score in points: the lower of that in batches and, where some rows are also asked alone, that with those
    rows' answers taken alone."""
    found = [metrics.scores_on(task, answers(file, rows), rows)["score"]]
    count = min(config.score_alone, len(rows))
    if count:
        chosen = rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:count]))
        model = OnnxModel(answers.store, file)
        alone, same = predict_logits(model, chosen, 1, CPU), predict_logits(model, chosen, config.batch_size, CPU)
        change = metrics.scores_on(task, alone, chosen)["score"] - metrics.scores_on(task, same, chosen)["score"]
        found.append(found[0] + change * count / len(rows))
    return 100 * min(found)


def time_models(
    models: Mapping[str, nn.Module], rows: TokenizedDataset, config: LatencyConfig
) -> dict[str, dict[str, Times]]:
    """Milliseconds of a forward pass by model and batch size, models in turn; a batch of 1 is the row of median length."""
    out: dict[str, dict[str, Times]] = {name: {} for name in models}
    for size in config.batch_sizes:
        batch = rows.batch(spread_rows(rows, size))
        arms = {name: _forward(model, batch) for name, model in models.items()}
        for name, found in config.time(arms, size).items():
            out[name][str(size)] = found
    return out


def _forward(model: nn.Module, batch: Any) -> Callable[[], object]:
    return lambda: model(batch.ids, batch.mask, batch.types)


def _inputs(file: Path, store: Path, rows: TokenizedDataset, config: ExportConfig) -> Iterable[int8.Inputs]:
    """The inputs of calibration rows, as the graph takes them."""
    recorded: list[int8.Inputs] = []
    model = OnnxModel(store, file)
    model.run = onnx_runner(store, str(file.absolute()), None, recorded.append)
    predict_logits(model, rows.select(np.arange(min(config.calibration_rows, len(rows)))), config.batch_size, CPU)
    return recorded
