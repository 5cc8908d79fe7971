"""Setting 3 of ROSITA's code, a control: the second teacher is cut to its bottom layers at once, then in width in rounds."""

from dataclasses import dataclass

from filbert.bert import FilbertForSequenceClassification
from filbert.layerwise import Depth
from filbert.pruning import cut, everything
from filbert.rounds import RoundsConfig, TargetConfig, pruned_in_width, second_teacher
from filbert.study import Study
from filbert.train import FitConfig


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    second_teacher: FitConfig
    width: RoundsConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked; later stages ask earlier students."""
    return ("logits",)


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Distil, shorten at once, narrow in rounds."""
    student = second_teacher(study, config.target, config.second_teacher)
    shorter = cut(student, everything(student, config.target.layers))
    return pruned_in_width(study, shorter, student, config.target, config.width)
