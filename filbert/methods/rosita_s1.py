"""Setting 1 of ROSITA's code, a control: the fine-tuned teacher is cut to the final shape at once and teaches what is left."""

from dataclasses import dataclass

from filbert.methods.context import MethodContext
from filbert.methods.rounds import TargetConfig, followed_states, pruned_at_once, state_loss, teacher_as_student
from filbert.models.bert import FilbertForSequenceClassification
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    importance: TrainingConfig
    fit: TrainingConfig


def columns(depth: LayerMap) -> tuple[str, ...]:
    """What the teacher must be asked: all states, for the target's depth says which."""
    return ("logits", *(f"hidden.{layer}" for layer in range(depth.teacher + 1)))


def compress(study: MethodContext, config: Config) -> FilbertForSequenceClassification:
    """Cut at once, distil from the teacher."""
    pruned = pruned_at_once(study, teacher_as_student(study, config.target), config.target, config.importance)
    rows = study.with_targets(["logits", *followed_states(pruned.config.num_hidden_layers, study.depth.teacher)])
    study.fit(pruned, state_loss(study, pruned, study.depth.teacher), rows, config.fit, "distil")
    return pruned
