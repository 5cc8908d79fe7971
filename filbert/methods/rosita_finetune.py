"""A control of ROSITA: the fine-tuned teacher is cut to the final shape at once and fine-tuned on labels: no distillation."""

from dataclasses import dataclass

from filbert.methods.context import MethodContext
from filbert.methods.rounds import TargetConfig, pruned_at_once, teacher_as_student
from filbert.models.bert import FilbertForSequenceClassification
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    importance: TrainingConfig
    fit: TrainingConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """Nothing of what the teacher says is used."""
    return ()


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Cut at once, fine-tune."""
    pruned = pruned_at_once(study, teacher_as_student(study, config.target), config.target, config.importance)
    study.fit(pruned, study.label_loss(pruned), study.train, config.fit, "train")
    return pruned
