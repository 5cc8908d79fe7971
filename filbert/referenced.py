"""Training a student that reads references: what `refbert` and its controls share, which differ in the reference alone."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from filbert import information
from filbert.data import Batch
from filbert.layerwise import Depth, Following, aligned
from filbert.reference_bert import REFERENCE, ReferenceForSequenceClassification
from filbert.references import Pick, PickConfig, Referring
from filbert.store import FOLDER, ReferenceStore, zeros
from filbert.students import ask
from filbert.study import Study
from filbert.train import FitConfig


@dataclass(frozen=True)
class Config:
    references: PickConfig
    norm: Literal["none", "reference", "joint", "statistics"]  # of what is read, see reference_bert.py
    gate: float  # where the trained bias of attention to the reference starts
    attention: float  # weight of the attention terms, as in tinybert
    intermediate: FitConfig
    temperature: float
    soft: float  # weight of the teacher in the prediction phase; the labels have 1 - soft
    prediction: FitConfig
    information: information.InformationConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked."""
    return tuple(dict.fromkeys((*depth.columns, *_memory(depth))))


def distil(study: Study, config: Config, pick: Pick) -> ReferenceForSequenceClassification:
    """Train a fresh student that reads references: layer by layer, then the prediction; attach the store."""
    memory = _memory(study.depth)
    width = study.cache.width(memory[0])
    student = study.student_of(
        ReferenceForSequenceClassification, reference_size=width, reference_norm=config.norm, reference_gate=config.gate
    )
    for projection in student.projections:
        aligned(projection)
    referring = Referring(study.references, study.cache, study.train, memory, pick, config.references)
    train, validation = referring.of("train", study.train), referring.of("validation", study.validation)
    rows, checked = study.taught(columns(study.depth), train), study.validation.taught(validation)

    with Following(student, study.depth, width, config.attention) as following:
        study.fit(
            student, following.loss, rows, config.intermediate, "intermediate", beside=following, validation=checked
        )

    def predict(batch: Batch) -> Tensor:
        return study.distilled_loss(ask(student, batch).logits, batch, config.temperature, config.soft)

    study.fit(student, predict, rows, config.prediction, "prediction", validation=checked)
    store = study.scratch / FOLDER
    referring.write_store(store)
    student.store = ReferenceStore(store)
    if pick == "nearest" and config.information.rows:
        study.recorder.log("information", 0, _gain(study, student, referring, config))
    return student


def _gain(
    study: Study, student: ReferenceForSequenceClassification, referring: Referring, config: Config
) -> dict[str, float]:
    """The information that references add to the student's own state: mean-pooled last states on training rows."""
    rows, last = (
        np.random.default_rng(study.seed).permutation(len(study.train))[: config.information.rows],
        referring.columns[1],
    )
    words = study.cache.on(study.train, [last])
    kinds = {kind: replace(referring, pick=kind).of("train", study.train).at for kind in ("nearest", "random")}
    own: list[Tensor] = []
    said: list[Tensor] = []
    beside: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    for part in np.array_split(rows, max(1, len(rows) // 256)):
        batch = study.train.batch(part).to(study.device)
        blind = dict(zip(REFERENCE, zeros(len(batch), student.config.reference_size), strict=True))
        blind["reference_mask"] = ~blind["reference_mask"]
        with torch.inference_mode():
            state = ask(student.eval(), replace(batch, teacher=blind).to(study.device)).hidden_states[-1]
        own.append(_pooled(state.cpu(), study.train.lengths[part]))
        for out, at in [(said, part), *((beside[kind], at[part, 0]) for kind, at in kinds.items())]:
            out.append(_pooled(words.take(at)[last], study.train.lengths[at]))
    references = {kind: torch.cat(parts) for kind, parts in beside.items()}
    return information.gain(torch.cat(own), torch.cat(said), references, config.information, study.seed)


def _pooled(states: Tensor, lengths: np.ndarray) -> Tensor:
    """The mean [B, D] over the first `lengths` [B] of states [B, T, D]."""
    mask = torch.arange(states.shape[1]) < torch.from_numpy(lengths)[:, None]
    return (states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _memory(depth: Depth) -> tuple[str, str]:
    """What is read of a reference: the teacher's embedding output as key, its last states as value (papers' A.4)."""
    return "hidden.0", f"hidden.{depth.teacher}"
