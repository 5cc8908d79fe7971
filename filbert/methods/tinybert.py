"""TinyBERT's task distillation (Jiao et al. 2020, arXiv 1909.10351): hidden states and attention first, then the prediction.

Phase 1: the student's embedding output, hidden states and attention scores follow the teacher's (equations 7 to 9, in
training/layerwise.py). Phase 2: its logits do (equation 10). The teacher's outputs come from the cache: no teacher runs here. Not
the paper's: the student is cut from the pretrained checkpoint instead of being distilled on Wikipedia first; no augmentation; the
labels may have a share of the prediction loss.
"""

from dataclasses import dataclass

from filbert.methods.context import MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.runtime.config import Fraction, NonNegative, Positive
from filbert.training.layerwise import LayerMap, LayerwiseLoss
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    attention_weight: NonNegative  # of the attention terms; the paper's is 1
    intermediate: TrainingConfig
    temperature: Positive
    teacher_weight: Fraction  # of the teacher's logits in the prediction phase; the labels have the rest
    prediction: TrainingConfig


def columns(layer_map: LayerMap, config: Config) -> tuple[str, ...]:
    """The teacher's logits, and hidden states and attention scores of the followed layers."""
    return layer_map.columns(attention=bool(config.attention_weight))


def compress(context: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on the teacher's states and attention, then on its logits."""
    student = context.new_student()
    with LayerwiseLoss(student, context.layer_map, context.width("hidden.0"), config.attention_weight) as layerwise:
        rows = context.with_targets(layerwise.columns)
        context.fit(student, layerwise.loss, rows, config.intermediate, "intermediate", extra_modules=layerwise)

    loss = context.prediction_loss(student, config.temperature, config.teacher_weight)
    rows = context.with_targets(["logits"])
    context.fit(student, loss, rows, config.prediction, "prediction", validate_start=False)
    return student
