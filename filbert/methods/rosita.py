"""ROSITA (Liu, Lin, Yuan 2021, AAAI, arXiv 2103.11367): pruning in rounds, factorisation and distillation in three stages.

Setting 4 of the official code: the fine-tuned teacher teaches a student of its own shape; that one, cut layer by layer, learns
from its former self; the shorter one, its heads, neurons and embedding cut in rounds, learns from its own former states.
Operators are in pruning.py, stages in rounds.py. Read from the official code, not from the paper's text: what is ours is said
there. Not the paper's: no augmentation yet. Against it stand `rosita_s1` to `rosita_s3`, the code's other settings, and
`rosita_finetune`, the same shape without distillation.
"""

from dataclasses import dataclass

from filbert.bert import FilbertForSequenceClassification
from filbert.layerwise import Depth
from filbert.rounds import RoundsConfig, TargetConfig, pruned_in_depth, pruned_in_width, second_teacher
from filbert.study import Study
from filbert.train import FitConfig


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    second_teacher: FitConfig
    depth: RoundsConfig
    width: RoundsConfig


def columns(depth: Depth) -> tuple[str, ...]:
    """What the teacher must be asked; later stages ask earlier students."""
    return ("logits",)


def compress(study: Study, config: Config) -> FilbertForSequenceClassification:
    """Distil, shorten, narrow."""
    student = second_teacher(study, config.target, config.second_teacher)
    shorter = pruned_in_depth(study, student, config.target, config.depth)
    return pruned_in_width(study, shorter, shorter, config.target, config.width)
