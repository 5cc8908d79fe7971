"""RefBERT (Wang, Yang, Zhao, Mo, Shen 2021, arXiv 2106.08898): the student also attends to its teacher's outputs for a similar row.

Each input has a reference: the training row most similar to it, never itself. The student's first layer attends over [input ;
reference]: keys from the teacher's embedding output of the reference, values from its last hidden states. The student is
trained as TinyBERT is, layer by layer and then the prediction. It reads references at inference, too, from a store that travels
with it.

The paper's: pre-computed teacher representations of the most similar other sample, used in the key and the value of the first
layer, at inference too. Our reconstruction, for the paper's formulae could not be read: BM25 over tokens as the similarity
(cache/retrieval.py), the projections and norms (models/reference_bert.py), the losses and their order. Controls: `tinybert`,
the same student and losses without a reference; `reference: random`, what similarity brings; `reference: zero`, what the extra
parameters bring.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from filbert.cache.retrieval import ReferenceKind, ReferenceReader, ReferenceSettings, reference_columns
from filbert.data.batches import Batch
from filbert.evaluation.mutual_information import InformationConfig, information_gain
from filbert.methods.context import MethodContext
from filbert.models.checkpoints import forward_batch
from filbert.models.reference_bert import REFERENCE, ReferenceForSequenceClassification
from filbert.models.reference_store import FOLDER, ReferenceStore, zero_reference
from filbert.runtime import distributed
from filbert.runtime.config import Fraction, NonNegative, Positive
from filbert.training.layerwise import LayerMap, LayerwiseLoss, init_identity
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    reference: ReferenceKind  # nearest, or a control: random, zero
    references: ReferenceSettings
    norm: Literal["none", "reference", "joint", "statistics"]  # of the projected reference: models/reference_bert.py
    gate: float  # where the trained bias of attention to the reference starts
    attention_weight: NonNegative  # of the attention terms, as in tinybert
    intermediate: TrainingConfig
    temperature: Positive
    teacher_weight: Fraction  # of the teacher's logits in the prediction phase; the labels have the rest
    prediction: TrainingConfig
    information: InformationConfig


def columns(layer_map: LayerMap, config: Config) -> tuple[str, ...]:
    """What TinyBERT needs, and what is read of a reference."""
    layerwise = layer_map.columns(attention=bool(config.attention_weight))
    return tuple(dict.fromkeys((*layerwise, *reference_columns(layer_map.teacher))))


def compress(context: MethodContext, config: Config) -> ReferenceForSequenceClassification:
    """Train a fresh student that reads references: layer by layer, then the prediction; attach the store."""
    read = reference_columns(context.layer_map.teacher)
    width = context.width(read[0])
    student = context.new_student_of_class(
        ReferenceForSequenceClassification, reference_size=width, reference_norm=config.norm, reference_gate=config.gate
    )
    for projection in student.projections:
        init_identity(projection)
    reader = ReferenceReader(
        context.references, context.cache, context.train, read, config.reference, config.references
    )
    references = reader.of("train", context.train)
    validation = context.validation.with_targets(reader.of("validation", context.validation))

    with LayerwiseLoss(student, context.layer_map, width, config.attention_weight) as layerwise:
        rows = context.with_targets(layerwise.columns, references)
        context.fit(student, layerwise.loss, rows, config.intermediate, "intermediate", layerwise, validation)

    loss = context.prediction_loss(student, config.temperature, config.teacher_weight)
    rows = context.with_targets(["logits"], references)
    context.fit(student, loss, rows, config.prediction, "prediction", validation=validation, validate_start=False)

    store = context.scratch / FOLDER
    distributed.run_on_main(lambda: reader.write_store(store))
    student.store = ReferenceStore(store)
    if config.reference == "nearest" and config.information.rows:
        context.recorder.log("information", 0, _information_gain(context, student, reader, config))
    return student


def _information_gain(
    context: MethodContext, student: ReferenceForSequenceClassification, reader: ReferenceReader, config: Config
) -> dict[str, float]:
    """How much a reference adds to the student's mean last state about the teacher's, on training rows, in nats."""
    rows = np.random.default_rng(context.seed).permutation(len(context.train))[: config.information.rows]
    last, lengths = reader.columns[1], context.train.lengths
    targets = context.cache.on(context.train, [last])

    def teacher_states(at: np.ndarray) -> Tensor:
        return torch.cat([_mean_state(targets.take(part)[last], lengths[part]) for part in _chunks(at)])

    def student_states(at: np.ndarray) -> Tensor:
        return torch.cat([_mean_state(_without_reference(student, context.train.batch(part), context.device), lengths[part])
                          for part in _chunks(at)])  # fmt: skip

    kinds: tuple[ReferenceKind, ReferenceKind] = ("nearest", "random")
    found = {kind: replace(reader, kind=kind).of("train", context.train).nearest[rows, 0] for kind in kinds}
    references: dict[str, Tensor] = {kind: teacher_states(at) for kind, at in found.items()}
    return information_gain(student_states(rows), teacher_states(rows), references, config.information, context.seed)


def _chunks(at: np.ndarray) -> list[np.ndarray]:
    return np.array_split(at, max(1, len(at) // 256))


@torch.inference_mode()
def _without_reference(student: ReferenceForSequenceClassification, batch: Batch, device: torch.device) -> Tensor:
    """The student's last hidden states [B, T, D] where its reference is masked."""
    keys, values, mask = zero_reference(len(batch), student.config.reference_size)
    masked = replace(batch, targets=dict(zip(REFERENCE, (keys, values, ~mask), strict=True)))
    return forward_batch(student.eval(), masked.to(device)).hidden_states[-1].cpu()


def _mean_state(states: Tensor, lengths: np.ndarray) -> Tensor:
    """The mean [B, D] over the first `lengths` [B] of states [B, T, D]."""
    mask = torch.arange(states.shape[1]) < torch.from_numpy(lengths)[:, None]
    return (states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
