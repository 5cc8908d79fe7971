"""Training a student that reads references: what `refbert` and its controls share, which differ in the reference alone."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from filbert.cache.retrieval import ReferenceKind, ReferenceReader, ReferenceSettings
from filbert.data.batches import Batch
from filbert.evaluation import mutual_information
from filbert.methods.context import MethodContext
from filbert.models.checkpoints import forward_batch
from filbert.models.reference_bert import REFERENCE, ReferenceForSequenceClassification
from filbert.models.reference_store import FOLDER, ReferenceStore, zero_reference
from filbert.runtime import distributed
from filbert.training.layerwise import LayerMap, LayerwiseLoss, init_identity
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    references: ReferenceSettings
    norm: Literal["none", "reference", "joint", "statistics"]  # of what is read, see reference_bert.py
    gate: float  # where the trained bias of attention to the reference starts
    attention: float  # weight of the attention terms, as in tinybert
    intermediate: TrainingConfig
    temperature: float
    teacher_weight: float  # weight of the teacher in the prediction phase; the labels have 1 - soft
    prediction: TrainingConfig
    information: mutual_information.InformationConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """What the teacher must be asked."""
    return tuple(dict.fromkeys((*depth.columns, *memory(depth))))


def distil(study: MethodContext, config: Config, pick: ReferenceKind) -> ReferenceForSequenceClassification:
    """Train a fresh student that reads references: layer by layer, then the prediction; attach the store."""
    read = memory(study.depth)
    width = study.cache.width(read[0])
    student = study.student_of(
        ReferenceForSequenceClassification, reference_size=width, reference_norm=config.norm, reference_gate=config.gate
    )
    for projection in student.projections:
        init_identity(projection)
    referring = ReferenceReader(study.references, study.cache, study.train, read, pick, config.references)
    train, validation = referring.of("train", study.train), referring.of("validation", study.validation)
    checked = study.validation.with_targets(validation)

    with LayerwiseLoss(student, study.depth, width, config.attention) as following:
        study.fit(
            student, following.loss, study.with_targets(following.columns, train), config.intermediate, "intermediate",
            beside=following, validation=checked,
        )  # fmt: skip

    def predict(batch: Batch) -> Tensor:
        return study.distillation_loss(
            forward_batch(student, batch).logits, batch, config.temperature, config.teacher_weight
        )

    study.fit(
        student, predict, study.with_targets(["logits"], train), config.prediction, "prediction", validation=checked
    )
    store = study.scratch / FOLDER
    distributed.run_on_main(lambda: referring.write_store(store))
    student.store = ReferenceStore(store)
    if pick == "nearest" and config.information.rows:
        study.recorder.log("information", 0, _gain(study, student, referring, config))
    return student


def _gain(
    study: MethodContext, student: ReferenceForSequenceClassification, referring: ReferenceReader, config: Config
) -> dict[str, float]:
    """What references add to the student's own mean last state about the teacher's, on training rows."""
    rows = np.random.default_rng(study.seed).permutation(len(study.train))[: config.information.rows]
    last, lengths = referring.columns[1], study.train.lengths
    words = study.cache.on(study.train, [last])

    def by_teacher(at: np.ndarray) -> Tensor:
        return torch.cat([_pooled(words.take(part)[last], lengths[part]) for part in _parts(at)])

    def by_student(at: np.ndarray) -> Tensor:
        return torch.cat([_pooled(_without_reference(student, study.train.batch(part), study.device), lengths[part])
                          for part in _parts(at)])  # fmt: skip

    kinds: tuple[ReferenceKind, ReferenceKind] = ("nearest", "random")
    found = {kind: replace(referring, pick=kind).of("train", study.train).at[rows, 0] for kind in kinds}
    references: dict[str, Tensor] = {kind: by_teacher(at) for kind, at in found.items()}
    return mutual_information.information_gain(
        by_student(rows), by_teacher(rows), references, config.information, study.seed
    )


def _parts(at: np.ndarray) -> list[np.ndarray]:
    return np.array_split(at, max(1, len(at) // 256))


@torch.inference_mode()
def _without_reference(student: ReferenceForSequenceClassification, batch: Batch, device: torch.device) -> Tensor:
    """The student's last states [B, T, D] where its reference is masked."""
    keys, values, mask = zero_reference(len(batch), student.config.reference_size)
    deaf = replace(batch, targets=dict(zip(REFERENCE, (keys, values, ~mask), strict=True)))
    return forward_batch(student.eval(), deaf.to(device)).hidden_states[-1].cpu()


def _pooled(states: Tensor, lengths: np.ndarray) -> Tensor:
    """The mean [B, D] over the first `lengths` [B] of states [B, T, D]."""
    mask = torch.arange(states.shape[1]) < torch.from_numpy(lengths)[:, None]
    return (states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def memory(depth: LayerMap) -> tuple[str, str]:
    """What is read of a reference: the teacher's embedding output as key, its last states as value (papers' A.4)."""
    return "hidden.0", f"hidden.{depth.teacher}"
