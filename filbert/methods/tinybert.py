"""TinyBERT's task distillation (Jiao et al. 2020, arXiv 1909.10351): layer by layer, then the prediction.

First the student's embedding output, states and attention scores follow the teacher's (equations 7 to 9); then its
prediction does (equation 10). The teacher's words come from the cache: no teacher runs here. Not the paper's: the student
is cut from the pretrained checkpoint instead of being distilled on Wikipedia first; no augmentation; the labels may have
a share of the prediction loss.
"""

from dataclasses import dataclass

from filbert.methods.context import MethodContext
from filbert.models.bert import FilbertForSequenceClassification
from filbert.training.layerwise import LayerMap, LayerwiseLoss
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    attention: float  # weight of the attention terms; the paper's is 1
    intermediate: TrainingConfig
    temperature: float
    teacher_weight: float  # weight of the teacher in the prediction phase; the labels have 1 - soft
    prediction: TrainingConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """What the teacher must be asked."""
    return depth.columns


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Train a fresh student on the teacher's states and attention, then on its logits."""
    student = study.student()
    with LayerwiseLoss(student, study.depth, study.cache.width("hidden.0"), config.attention) as following:
        study.fit(
            student,
            following.loss,
            study.with_targets(following.columns),
            config.intermediate,
            "intermediate",
            beside=following,
        )
    predict = study.kd_loss(student, config.temperature, config.teacher_weight)
    study.fit(student, predict, study.with_targets(["logits"]), config.prediction, "prediction")
    return student
