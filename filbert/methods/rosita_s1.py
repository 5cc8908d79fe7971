"""Setting 1 of ROSITA's code, a control: the fine-tuned teacher is cut to the final shape at once and teaches what is left."""

from dataclasses import dataclass

from filbert.bert import FilbertForSequenceClassification
from filbert.layerwise import Depth
from filbert.rounds import TargetConfig, learn_states, pruned_at_once, states_of, whole
from filbert.study import Study
from filbert.train import FitConfig


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    importance: FitConfig
    fit: FitConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked: all states, for the target's depth says which."""
    return ("logits", *(f"hidden.{layer}" for layer in range(depth.teacher + 1)))


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Cut at once, distil from the teacher."""
    pruned = pruned_at_once(study, whole(study, config.target), config.target, config.importance)
    rows = study.taught(["logits", *states_of(pruned.config.num_hidden_layers, study.depth.teacher)])
    study.fit(pruned, learn_states(study, pruned, study.depth.teacher), rows, config.fit, "distil")
    return pruned
