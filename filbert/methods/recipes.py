"""Recipes: a student of one method is the start of another. Any student can be cut by ROSITA's rounds, which teach it what it
said and how before it was cut."""

from dataclasses import dataclass, replace
from pathlib import Path

from filbert.cache.retrieval import ReferenceReader, ReferenceSettings
from filbert.methods.context import MethodContext
from filbert.methods.referenced import memory
from filbert.methods.rounds import RoundsConfig, TargetConfig, check_target, pruned_in_depth, pruned_in_width
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.checkpoints import HISTORY, load_prunable
from filbert.models.pruning import keep_all, prune
from filbert.models.reference_bert import ReferenceForSequenceClassification
from filbert.models.reference_store import FOLDER, ReferenceStore
from filbert.training.layerwise import LayerMap


@dataclass(frozen=True)
class Config:
    target: TargetConfig
    depth: RoundsConfig | None  # none: layers go at once
    width: RoundsConfig


def columns(start: Path, depth: LayerMap) -> tuple[str, ...]:
    """What the teacher was asked for a start that reads references. Else nothing: the start is its own teacher."""
    return memory(depth) if (start / FOLDER).exists() else ()


def cut_further(study: MethodContext, start: Path, config: Config) -> FilbertForSequenceClassification:
    """Cut the student in the folder `start` to the target, in depth and in width, its former selves the teachers."""
    student = load_prunable(start, study.task)
    check_target(config.target, student)
    study.recorder.inherit(start / HISTORY, "start")
    store = ReferenceStore(start / FOLDER) if isinstance(student, ReferenceForSequenceClassification) else None
    if store is not None:
        study = _with_references(study, store)
    if config.depth is not None:
        student = teacher = pruned_in_depth(study, student, config.target, config.depth)
    else:
        student, teacher = prune(student, keep_all(student, config.target.layers)), student
    student = pruned_in_width(study, student, teacher, config.target, config.width)
    if isinstance(student, ReferenceForSequenceClassification):
        student.store = store
    return student


def _with_references(study: MethodContext, store: ReferenceStore) -> MethodContext:
    """The study, whose rows bring the references that the store would find for them; a training row never itself."""
    pick = ReferenceSettings(store.count, "int8")
    referring = ReferenceReader(study.references, study.cache, study.train, memory(study.depth), store.pick, pick)
    train, validation = referring.of("train", study.train), referring.of("validation", study.validation)
    return replace(study, train=study.train.with_targets(train), validation=study.validation.with_targets(validation))
