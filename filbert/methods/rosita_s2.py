"""Setting 2 of ROSITA's code, a control: the second teacher is cut to the final shape at once and teaches what is left."""

from dataclasses import dataclass

from filbert.bert import FilbertForSequenceClassification
from filbert.layerwise import Depth
from filbert.rounds import TargetConfig, from_teacher, learn_states, pruned_at_once, second_teacher
from filbert.study import Study
from filbert.train import FitConfig


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    second_teacher: FitConfig
    importance: FitConfig
    fit: FitConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked; later stages ask earlier students."""
    return ("logits",)


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Distil, cut at once, distil from the one that was cut."""
    student, layers = second_teacher(study, config.target, config.second_teacher), study.depth.teacher
    rows = from_teacher(study, student, config.target.layers or layers)
    pruned = pruned_at_once(study, student, config.target, config.importance)
    study.fit(pruned, learn_states(study, pruned, layers), rows, config.fit, "distil")
    return pruned
