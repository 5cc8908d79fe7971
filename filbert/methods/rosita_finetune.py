"""A control of ROSITA: the fine-tuned teacher is cut to the final shape at once and fine-tuned on labels: no distillation."""

from dataclasses import dataclass

from filbert.bert import FilbertForSequenceClassification
from filbert.layerwise import Depth
from filbert.rounds import TargetConfig, pruned_at_once, whole
from filbert.study import Study
from filbert.train import FitConfig


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    importance: FitConfig
    fit: FitConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """Nothing of what the teacher says is used."""
    return ()


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Cut at once, fine-tune."""
    pruned = pruned_at_once(study, whole(study, config.target), config.target, config.importance)
    study.fit(pruned, study.learn_labels(pruned), study.train, config.fit, "train")
    return pruned
