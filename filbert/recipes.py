"""Recipes: a student of one method is the start of another. Any student can be cut by ROSITA's rounds, which teach it what it
said and how before it was cut."""

from dataclasses import dataclass, replace
from pathlib import Path

from filbert.bert import FilbertForSequenceClassification
from filbert.layerwise import Depth
from filbert.pruning import cut, everything
from filbert.reference_bert import ReferenceForSequenceClassification
from filbert.referenced import memory
from filbert.references import PickConfig, Referring
from filbert.rounds import RoundsConfig, TargetConfig, check_target, pruned_in_depth, pruned_in_width
from filbert.store import FOLDER, ReferenceStore
from filbert.students import HISTORY, own
from filbert.study import Study


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    depth: RoundsConfig | None  # none: layers go at once
    width: RoundsConfig


def columns(start: Path, depth: Depth) -> tuple[str, ...]:
    """What the teacher was asked for a start that reads references. Else nothing: the start is its own teacher."""
    return memory(depth) if (start / FOLDER).exists() else ()


def cut_further(study: Study, start: Path, config: Config) -> FilbertForSequenceClassification:
    """Cut the student in the folder `start` to the target, in depth and in width, its former selves the teachers."""
    student = own(start, study.task)
    check_target(config.target, student)
    study.recorder.inherit(start / HISTORY, "start")
    store = ReferenceStore(start / FOLDER) if isinstance(student, ReferenceForSequenceClassification) else None
    if store is not None:
        study = _with_references(study, store)
    if config.depth is not None:
        student = teacher = pruned_in_depth(study, student, config.target, config.depth)
    else:
        student, teacher = cut(student, everything(student, config.target.layers)), student
    student = pruned_in_width(study, student, teacher, config.target, config.width)
    if isinstance(student, ReferenceForSequenceClassification):
        student.store = store
    return student


def _with_references(study: Study, store: ReferenceStore) -> Study:
    """The study, whose rows bring the references that the store would find for them; a training row never itself."""
    pick = PickConfig(store.count, "int8")
    referring = Referring(study.references, study.cache, study.train, memory(study.depth), store.pick, pick)
    train, validation = referring.of("train", study.train), referring.of("validation", study.validation)
    return replace(study, train=study.train.taught(train), validation=study.validation.taught(validation))
