"""params.yaml is read strictly, and every section of the real one builds its dataclass."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

import pytest

from filbert.cache import read as cache_read
from filbert.cache import retrieval
from filbert.data import arrow, batches, prepare, sources
from filbert.evaluation import statistics
from filbert.methods import pretraining, recipes
from filbert.models import checkpoints
from filbert.runtime import config
from filbert.text import augment, corpus, transfer
from filbert.training import loop
from stages.evaluate import EvaluateConfig


@dataclass(frozen=True)
class Inner:
    rate: float
    kind: Literal["a", "b"]


@dataclass(frozen=True)
class Outer:
    inner: Inner
    layers: tuple[int, ...]
    name: str | None


GOOD = "s: {inner: {rate: 1.0e-5, kind: a}, layers: [1, 2], name: null}"


def read(tmp_path: Path, text: str) -> Outer:
    (tmp_path / "params.yaml").write_text(text)
    return config.section("s", Outer, tmp_path / "params.yaml")


def test_a_section_becomes_its_dataclass(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == Outer(Inner(1e-5, "a"), (1, 2), None)
    assert read(tmp_path, GOOD.replace("1.0e-5", "2")).inner.rate == 2.0  # a whole number is a number


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: null", "name: null, extra: 1", "s: unknown key `extra`"),
        (", name: null", "", "s: missing key `name`"),
        ("rate: 1.0e-5", "rate: fast", "s.inner.rate: expected float, got 'fast'"),
        ("rate: 1.0e-5", "rate: true", "s.inner.rate: expected float, got True"),  # a bool is no number
        ("kind: a", "kind: c", "s.inner.kind: expected 'a' or 'b', got 'c'"),
        ("[1, 2]", "[1, x]", "s.layers[1]: expected int, got 'x'"),
        ("{rate: 1.0e-5, kind: a}", "7", "s.inner: expected a section with rate, kind, got 7"),
        ("s:", "t:", "no `s` in the top level"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(config.ConfigError) as error:
        read(tmp_path, GOOD.replace(old, new))
    assert said in str(error.value)


def test_every_section_of_the_shipped_params_builds() -> None:
    config.section("checkpoint", sources.Source)
    config.section("datasets", dict[str, sources.Source])
    config.section("prepare", prepare.PrepareConfig)
    config.section("encode", batches.TokenizerConfig)
    config.section("teach", loop.TrainingConfig)
    config.section("cache", cache_read.CacheConfig)
    config.section("student", checkpoints.StudentConfig)
    config.section("evaluate", EvaluateConfig)
    config.section("report", statistics.ReportConfig)
    config.section("references", retrieval.RetrievalConfig)
    config.section("vectors", sources.Source)
    config.section("transfer", transfer.TransferConfig)
    config.section("augment", augment.AugmentConfig)
    config.section("parts", arrow.Partition)
    config.section("corpus", corpus.CorpusConfig)
    everything = config.read_params()
    for name in everything["pretrain"]:
        config.section(f"pretrain.{name}", pretraining.PretrainConfig)
    methods = {start["name"]: start["by"] for start in everything["starts"]}
    for name in everything["distill"]:
        config.section(f"distill.{name}", import_module(f"filbert.methods.{methods.get(name, name)}").Config)
    for recipe in everything["prune"]:
        config.section(f"prune.{recipe}", recipes.Config)
    built = {
        "checkpoint",
        "datasets",
        "prepare",
        "encode",
        "teach",
        "cache",
        "student",
        "distill",
        "prune",
        "evaluate",
        "references",
        "report",
        "vectors",
        "transfer",
        "augment",
        "parts",
        "corpus",
        "pretrain",
    }
    assert set(everything) == built | {
        "tasks",
        "methods",
        "recipes",
        "pretrained",
        "starts",
        "seeds",
        "launch",
    }
