"""Setting 2 of ROSITA's code, a control: the second teacher is cut to the final shape at once and teaches what is left."""

from dataclasses import dataclass

from filbert.methods.context import MethodContext
from filbert.methods.rounds import TargetConfig, from_teacher, pruned_at_once, second_teacher, state_loss
from filbert.models.bert import FilbertForSequenceClassification
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    second_teacher: TrainingConfig
    importance: TrainingConfig
    fit: TrainingConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """What the teacher must be asked; later stages ask earlier students."""
    return ("logits",)


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Distil, cut at once, distil from the one that was cut."""
    student, layers = second_teacher(study, config.target, config.second_teacher), study.depth.teacher
    rows = from_teacher(study, student, config.target.layers or layers)
    pruned = pruned_at_once(study, student, config.target, config.importance)
    study.fit(pruned, state_loss(study, pruned, layers), rows, config.fit, "distil")
    return pruned
