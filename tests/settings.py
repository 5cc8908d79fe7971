"""Every section of a params.yaml, built by the dataclass that reads it: what `make repro` would refuse, before it runs."""

from pathlib import Path
from typing import Any

from filbert import methods
from filbert.cache.retrieval import RetrievalConfig
from filbert.cache.teacher_cache import CacheConfig
from filbert.data.arrow import Partition
from filbert.data.batches import TokenizerConfig
from filbert.data.splits import PrepareConfig
from filbert.data.tasks import Source, find, names, source_of, transfer_texts
from filbert.evaluation.latency import LatencyConfig
from filbert.evaluation.statistics import ReportConfig
from filbert.export.baselines import BaselinesConfig
from filbert.export.gate import ExportConfig
from filbert.methods import load_method
from filbert.methods.mixed_vocabulary import PretrainConfig
from filbert.methods.rosita import ChainConfig
from filbert.models.checkpoints import StudentConfig
from filbert.runtime import config
from filbert.text.augment import AugmentConfig
from filbert.text.corpus import CorpusConfig
from filbert.text.transfer import FilterConfig
from filbert.training.layerwise import CacheColumnsConfig
from filbert.training.loop import TrainingConfig
from stages.evaluate import EvaluateConfig
from stages.teach import TeacherConfig

SECTIONS: dict[str, Any] = {
    "augment": AugmentConfig, "baselines": BaselinesConfig, "cache": CacheConfig, "cache_columns": CacheColumnsConfig,
    "checkpoint": Source, "corpus": CorpusConfig, "evaluate": EvaluateConfig, "export": ExportConfig, "latency": LatencyConfig,
    "partitions": Partition, "prepare": PrepareConfig, "references": RetrievalConfig, "report": ReportConfig,
    "sources": dict[str, Source], "student": StudentConfig, "teacher": TeacherConfig, "tokenizer": TokenizerConfig,
    "training": TrainingConfig, "transfer": FilterConfig, "word_vectors": Source,
}  # fmt: skip
LISTS = {"tasks", "methods", "variants", "chains", "pretrained", "texts", "exports", "seeds", "launch"}
NAMED = {"settings", "pretrain", "task_table"}  # a section for each name


def build_everything(params: Path) -> dict[str, Any]:
    """Build every section of `params`, by name: settings of methods, variants and chains too.

    Raises:
        FilbertError: a key is unknown, missing or of another type, or a name is in no list.
    """
    document = config.read_params(params)
    assert set(document) == {*SECTIONS, *LISTS, *NAMED}
    built: dict[str, Any] = {name: config.section(name, shape, params) for name, shape in SECTIONS.items()}
    built |= {task: find(task, params) for task in names(params)}
    for name in document["pretrain"]:
        built[f"pretrain.{name}"] = config.section(f"pretrain.{name}", PretrainConfig, params)
    students = {name: name for name in document["methods"]}
    students |= {variant["name"]: variant["method"] for variant in document["variants"]}
    chains = {chain["name"]: chain["from"] for chain in document["chains"]}
    for name, method in students.items():
        sections = [f"settings.{method}", f"settings.{name}"]
        built[name] = config.section(sections, load_method(method).Config, params)
        assert name in document["settings"], f"DVC needs settings.{name}, if only {{}}"
    for name, start in chains.items():
        built[name] = config.section(f"settings.{name}", ChainConfig, params)
        assert start in {*students, *chains}, f"chains: {name} starts from {start}, which is not listed"
    assert len({*students, *chains}) == len(students) + len(document["chains"]), "two students have one name"
    shipped = {
        chain["name"] for chain in config.read_params()["chains"]
    }  # their settings stay where a study lists no chain
    for name in {*document["settings"]} - {*built} - shipped:  # of methods that are not listed now, and their variants
        if method := method_of(name):
            built[name] = config.section([f"settings.{method}", f"settings.{name}"], load_method(method).Config, params)
    assert {*document["exports"]} <= {*students, *chains}, "a student that is not made cannot be exported"
    starts = {f"pretrained/{name}" for name in document["pretrained"]} | {"checkpoint"}
    assert {variant["start"] for variant in document["variants"]} <= starts
    assert {*document["pretrained"]} <= {*document["pretrain"]}
    for task in (built[name] for name in document["tasks"]):
        source_of(task, params)
        assert {text.name for text in transfer_texts(task, params)} <= {*document["texts"]}
    assert {*document["texts"]} <= {*document["task_table"]}
    return built


def method_of(name: str) -> str:
    """The method that a section of `settings` belongs to: its own name, or the longest method's name that it begins with."""
    known = [method for method in methods.names() if name == method or name.startswith(f"{method}_")]
    return max(known, key=len, default="")
