"""Setting 3 of ROSITA's code, a control: the second teacher is cut to its bottom layers at once, then in width in rounds."""

from dataclasses import dataclass

from filbert.methods.context import MethodContext
from filbert.methods.rounds import RoundsConfig, TargetConfig, pruned_in_width, second_teacher
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.pruning import keep_all, prune
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    second_teacher: TrainingConfig
    width: RoundsConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """What the teacher must be asked; later stages ask earlier students."""
    return ("logits",)


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Distil, shorten at once, narrow in rounds."""
    student = second_teacher(study, config.target, config.second_teacher)
    shorter = prune(student, keep_all(student, config.target.layers))
    return pruned_in_width(study, shorter, student, config.target, config.width)
