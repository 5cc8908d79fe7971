"""One epoch of distilling a student from a teacher's logits: this project beside what a user would take instead.

| arm | what |
| --- | --- |
| Filbert, with its cache | the teacher's logits are computed once and stored, then the student learns from them; both are counted |
| Filbert, from its cache | the same without the building: every further student, seed or setting |
| Filbert, without dropout | the same as the default has it; all other arms drop what the student's configuration says |
| Trainer | `transformers.Trainer` with the teacher run beside the student, rows shuffled, padded to the longest of a batch |
| Trainer, grouped | the same, `train_sampling_strategy="group_by_length"`: a careful user |
| TextBrewer | its GeneralDistiller, the same loss (T² folded into the weight: it leaves it out), where it is installed |
| torchdistill | its DistillationBox with KDLoss, where it is installed |

The last two are no dependency of this project. In an environment of their own beside it:
`pip install --no-deps textbrewer==0.2.1.post1 torchdistill==1.1.5 tensorboard absl-py grpcio markdown werkzeug`. torchdistill
imports torchvision for image models; where that is missing, empty classes stand for it.

All start from the same student, with the same rows, batch size, learning rate and its schedule, and the same loss, w T² KL +
(1 - w) CE. Filbert trains in bfloat16 where the processor has it. Arms run in turn; a ratio is of medians; scores are of the
validation rows after the epoch.
"""

import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from benchmarks.turns import machine
from filbert.cache import build, teacher_cache
from filbert.data import arrow, batches, tasks
from filbert.data.batches import TokenizedDataset
from filbert.evaluation import metrics
from filbert.evaluation.tables import markdown_table
from filbert.models import checkpoints
from filbert.runtime import config, device, progress
from filbert.runtime.files import write_text
from filbert.tracking.run_recorder import stage_run
from filbert.training import losses
from filbert.training.loop import TrainingConfig, fit

T, W = 2.0, 0.7  # temperature, weight of the teacher's logits
BATCH, RATE = 32, 1e-4
EMPTY = [f"torchvision{name}" for name in ("", ".datasets", ".models", ".models.densenet", ".models.resnet")]


class Precision(StrEnum):
    """Of the other libraries' arithmetic."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class Bench:
    """Rows, a teacher and a student's start, and a way to train by each library; each gives the trained student."""

    def __init__(self, task_name: str, prepared: Path, teacher: Path, checkpoint: Path, count: int, work: Path):
        self.task, self.teacher, self.work, self.on = tasks.find(task_name), teacher, work, device.select_device()
        self.tokenizer = batches.load_tokenizer(teacher)
        self.encoding = config.section("tokenizer", batches.TokenizerConfig)
        self.table = arrow.read_table(prepared / "train.arrow").slice(0, count)
        self.rows = batches.tokenize(self.table, self.task, self.tokenizer, self.encoding)
        work.mkdir()
        self.steps = -(-len(self.rows) // BATCH)
        self.validation = batches.load_split(prepared, "validation", self.task, self.tokenizer, self.encoding)[1]
        torch.manual_seed(0)
        start = checkpoints.new_student(checkpoint, self.task, config.section("student", checkpoints.StudentConfig))
        checkpoints.save(start, self.tokenizer, work / "start")

    def student(self) -> Any:
        """A student at its start, as Filbert trains it: its own encoder."""
        return checkpoints.load_prunable(self.work / "start", self.task)

    def build(self) -> teacher_cache.TeacherCache:
        """The teacher's logits on the rows, in a cache of their own."""
        settings = config.section("cache", teacher_cache.CacheConfig)
        key = teacher_cache.cache_fingerprint(self.teacher, self.encoding, settings, self.on)
        folder = Path(tempfile.mkdtemp(dir=self.work))

        def tokenize(part: Any) -> TokenizedDataset:
            return batches.tokenize(part, self.task, self.tokenizer, self.encoding)

        model: Any = checkpoints.as_filbert(checkpoints.load_model(self.teacher))
        build.build_cache(folder / "cache", model, self.table, tokenize, ["logits"], key, settings, self.on)
        return teacher_cache.TeacherCache([folder / "cache"], key)

    def build_only(self) -> None:
        self.build()

    def from_cache(self, cache: teacher_cache.TeacherCache, dropout: bool) -> Any:
        student, rows = self.student(), self.rows.with_targets(cache.on(self.rows, ["logits"]))

        def loss(batch: batches.Batch) -> Tensor:
            return kd_loss(
                checkpoints.forward_batch(student, batch, logits_alone=True).logits,
                batch.targets["logits"],
                batch.label,
            )

        phase = replace(
            config.section("training", TrainingConfig),
            epochs=1.0,
            batch_size=BATCH,
            learning_rate=RATE,
            validations=0,
            min_steps=0,
            dropout=dropout,
        )
        scratch = Path(tempfile.mkdtemp(dir=self.work))
        with stage_run("peers", params={}, tags={}, hashes={}, scratch=scratch) as recorder:
            fit(
                student,
                loss,
                rows,
                dict,
                phase,
                phase="train",
                seed=1,
                device=self.on,
                scratch=scratch,
                recorder=recorder,
            )
        return student

    def pair(self) -> tuple[Any, Any]:
        """A student at its start and the teacher, as transformers loads them."""
        student, teacher = (
            AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            for folder in (self.work / "start", self.teacher)
        )
        return student, teacher.eval()

    def trainer(self, grouped: bool, bf16: bool) -> Any:
        """By transformers.Trainer, with the teacher beside."""
        student, teacher = self.pair()

        class Distiller(Trainer):
            def compute_loss(self, model: Any, inputs: Any, *_: Any, **more: Any) -> Tensor:
                label = inputs.pop("labels")
                with torch.no_grad(), torch.autocast(label.device.type, torch.bfloat16, enabled=bf16):
                    theirs = teacher(**inputs).logits
                return kd_loss(model(**inputs).logits, theirs, label)

        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(dir=self.work), num_train_epochs=1, per_device_train_batch_size=BATCH,
            learning_rate=RATE, warmup_steps=round(0.1 * self.steps), weight_decay=0.01, bf16=bf16,
            train_sampling_strategy="group_by_length" if grouped else "random", use_cpu=self.on.type == "cpu",
            report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no", remove_unused_columns=False,
        )  # fmt: skip
        Distiller(student, arguments, DataCollatorWithPadding(self.tokenizer), self.examples()).train()
        return student

    def textbrewer(self, bf16: bool) -> Any:
        """By TextBrewer's GeneralDistiller, as its examples have it, but padded to the longest of a batch."""
        from textbrewer import DistillationConfig, GeneralDistiller
        from textbrewer import TrainingConfig as Training

        student, teacher = self.pair()
        collate = DataCollatorWithPadding(self.tokenizer)
        loader: Any = torch.utils.data.DataLoader(
            self.examples(),  # type: ignore[arg-type]
            BATCH,
            shuffle=True,
            collate_fn=lambda rows: dict(collate(rows)),  # it takes plain dicts alone
        )

        def adapt(batch: Any, output: Any) -> dict[str, Any]:
            return {"logits": output.logits, "losses": output.loss}

        weights = {"temperature": T, "hard_label_weight": 1 - W, "kd_loss_weight": W * T**2, "kd_loss_type": "ce"}
        training = Training(
            device=str(self.on), ckpt_frequency=0, log_dir=None, output_dir=tempfile.mkdtemp(dir=self.work)
        )
        distiller = GeneralDistiller(training, DistillationConfig(**weights), teacher, student, adapt, adapt)
        optimizer = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.01)
        for model in (
            student,
            teacher,
        ):  # one autocast around all steps would keep the casts of the first step's weights
            model.forward = torch.autocast(self.on.type, torch.bfloat16, enabled=bf16)(model.forward)
        with distiller:
            distiller.train(optimizer, loader, num_epochs=1, callback=None, scheduler_class=get_linear_schedule_with_warmup,
                            scheduler_args=self.schedule())  # fmt: skip
        del student.forward  # the model's own again
        return student

    def torchdistill(self, bf16: bool) -> Any:
        """By torchdistill's DistillationBox, driven as its example of text classification drives it."""
        with torchvision_or_empty():
            from torchdistill.core.distillation import DistillationBox
            from torchdistill.datasets.registry import register_collate_func

        student, teacher = self.pair()
        collate = DataCollatorWithPadding(self.tokenizer)

        @register_collate_func(key="padded")
        def padded(rows: list[dict[str, Any]]) -> tuple[dict[str, Tensor], Tensor]:
            batch = dict(collate(rows))
            return batch, batch.pop("labels")

        model = {"forward_proc": "forward_batch_only_as_kwargs", "forward_hook": {"output": ["classifier"]}}
        logits = {f"{who}_module_{part}": value for who in ("student", "teacher")
                  for part, value in (("path", "classifier"), ("io", "output"))}  # fmt: skip
        kd = {"key": "KDLoss", "kwargs": {**logits, "temperature": T, "alpha": 1 - W}}
        loader = {
            "dataset_id": "train", "requires_supp": False, "collate_fn": "padded",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler}, "kwargs": {"batch_size": BATCH},
        }  # fmt: skip
        settings = {
            "num_epochs": 1, "train_data_loader": loader, "teacher": {**model, "requires_grad": False}, "student": model,
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
            "optimizer": {"key": "AdamW", "kwargs": {"lr": RATE, "weight_decay": 0.01}},
        }  # fmt: skip
        box = DistillationBox(teacher, student, {"train": self.examples()}, settings, self.on, None, False, 1.0)
        box.lr_scheduler = get_linear_schedule_with_warmup(box.optimizer, **self.schedule())
        box.scheduling_step = 1  # the schedule goes on after each step
        student.train()
        box.pre_epoch_process(epoch=0)
        for batch, label in box.train_data_loader:
            box.pre_forward_process()
            with torch.autocast(self.on.type, torch.bfloat16, enabled=bf16):
                loss = box.forward_process(batch, label)
            box.post_forward_process(loss)
        box.post_epoch_process()
        box.clean_modules()
        return student

    def schedule(self) -> dict[str, int]:
        """Warm-up and decay as Filbert's, for get_linear_schedule_with_warmup."""
        return {"num_warmup_steps": round(0.1 * self.steps), "num_training_steps": self.steps}

    def examples(self) -> list[dict[str, Any]]:
        """The rows as Hugging Face's collators take them."""
        parts = [np.split(values, self.rows.offsets[1:-1]) for values in (self.rows.ids, self.rows.types)]
        return [
            {"input_ids": ids.tolist(), "token_type_ids": types.tolist(), "labels": int(label)}
            for ids, types, label in zip(*parts, self.rows.label, strict=True)
        ]

    def score(self, student: Any) -> float:
        logits = checkpoints.predict_logits(student.float(), self.validation, 64, self.on)
        return 100 * metrics.scores_on(self.task, logits, self.validation)["score"]


def kd_loss(logits: Tensor, theirs: Tensor, label: Tensor) -> Tensor:
    """w T² KL(teacher ‖ student) + (1 - w) CE."""
    return W * losses.softened_kl(logits, theirs, T) + (1 - W) * losses.cross_entropy(logits, label)


@contextmanager
def torchvision_or_empty() -> Iterator[None]:
    """Where torchvision is not installed, empty classes under the names that torchdistill's image models import."""
    missing = importlib.util.find_spec("torchvision") is None
    for name in EMPTY if missing else ():
        module: Any = ModuleType(name)
        module.__getattr__ = lambda attribute: type(attribute, (nn.Module,), {})
        sys.modules[name] = module
    yield
    for name in EMPTY if missing else ():
        del sys.modules[name]


def main(
    task_name: str,
    prepared: Path,
    teacher: Path,
    checkpoint: Path,
    out: Annotated[Path, typer.Argument(help="the Markdown file to write")],
    count: Annotated[int, typer.Option(help="training rows")] = 2000,
    rounds: int = 2,
    students: Annotated[int, typer.Option(help="of one teacher, for the last column")] = 10,
    precisions: Annotated[list[Precision], typer.Option(help="of the other libraries")] = list(Precision),  # noqa: B006
) -> None:
    """Train a student for one epoch by each library, in turn, on the first rows of PREPARED, and write the table to OUT."""
    with tempfile.TemporaryDirectory(prefix="filbert-peers-") as folder:
        for name, rows in (("few", 2 * BATCH), ("all", count)):  # with few all is imported that an arm imports
            bench = Bench(task_name, prepared, teacher, checkpoint, rows, Path(folder) / name)
            seconds, scores = run_in_turn(arms_of(bench, precisions), 1 if name == "few" else rounds, bench.score)
    building = float(np.median(seconds.pop("Filbert, building the cache")))
    first = float(np.median(seconds["Filbert, from its cache"]))
    lines = [["arm", "seconds an epoch (least)", "score", "1 student", f"{students} students"]]
    for name, found in seconds.items():
        once, median = building if name.startswith("Filbert") else 0.0, float(np.median(found))
        factors = [(once + n * median) / (building + n * first) for n in (1, students)]
        lines.append(
            [name, f"{median:.1f} ({min(found):.1f})", f"{np.mean(scores[name]):.1f}", *(f"{f:.2f}×" for f in factors)]
        )
    head = (
        f"Measured by `python -m benchmarks.peers` on {task_name}: {count} training rows, one epoch, batches of {BATCH}, {rounds} "
        f"rounds in turn, {machine(device.select_device())}. Building the cache takes {building:.1f} s, once. The last columns are "
        "times against Filbert's for one student and for several of one teacher, the building included."
    )
    write_text(out, "\n\n".join(["# Beside other libraries", head, markdown_table(lines)]) + "\n")
    print(out.read_text())


def arms_of(bench: Bench, precisions: list[Precision]) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    cache = bench.build()
    arms: dict[str, Callable[[], Any]] = {
        "Filbert, building the cache": bench.build_only,
        "Filbert, from its cache": partial(bench.from_cache, cache, True),
        "Filbert, from its cache, without dropout": partial(bench.from_cache, cache, False),
    }
    for precision in precisions:
        bf16 = precision is Precision.BFLOAT16
        arms[f"Trainer, {precision}"] = partial(bench.trainer, False, bf16)
        arms[f"Trainer, grouped, {precision}"] = partial(bench.trainer, True, bf16)
        for name, arm in {"TextBrewer": bench.textbrewer, "torchdistill": bench.torchdistill}.items():
            if importlib.util.find_spec(name.lower()):
                arms[f"{name}, {precision}"] = partial(arm, bf16)
    return arms


def run_in_turn(
    arms: dict[str, Callable[[], Any]], rounds: int, score: Callable[[Any], float]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each arm, and the scores of the students that it trained, which are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    scores: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            start = time.perf_counter()
            student = run()
            seconds[name].append(time.perf_counter() - start)
            if student is not None:
                scores[name].append(score(student))
            progress.log(f"{name}: {seconds[name][-1]:.1f} s, score {scores[name][-1:]}")
    return seconds, scores


if __name__ == "__main__":
    typer.run(main)
