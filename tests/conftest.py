"""Fixtures that tests of several rooms use; what they are made of is in tiny.py."""

import os

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DVC_NO_ANALYTICS="1", HF_HUB_OFFLINE="1")

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CPU, ROOT, find_task, tiny_config, tiny_tokenizer, write_sst2
from transformers import BertForSequenceClassification, BertModel

from filbert.cache import build, read, retrieval
from filbert.data import batches, prepare
from filbert.methods.context import MethodContext
from filbert.models import checkpoints
from filbert.tracking.mlflow_store import STORE
from filbert.tracking.recording import RunRecorder, stage_run
from filbert.training.layerwise import LayerMap


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlflow.set_tracking_uri writes the environment: without this, every test would use the first one's store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store that has no run yet: to make one takes seconds."""
    file = tmp_path_factory.mktemp("store") / STORE
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{file}"}
    subprocess.run(
        [sys.executable, "-c", "from filbert.tracking.mlflow_store import MlflowStore; MlflowStore()"],
        env=environment,
        check=True,
        cwd=ROOT,
    )
    return file


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """An MLflow store in the test's own folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copyfile(empty_store, tmp_path / STORE)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained-looking folder: no head, its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    BertModel(tiny_config()).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier folder, saved by transformers itself."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.5)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> prepare.Prepared:
    folder = write_sst2(tmp_path_factory.mktemp("glue"))
    return prepare.prepare(folder / "SST-2", find_task("sst2"), prepare.PrepareConfig(0.25, 0.1, 1000, 0))


@pytest.fixture
def encoded(prepared: prepare.Prepared) -> batches.TokenizedDataset:
    return batches.tokenize(prepared.tables["train"], find_task("sst2"), tiny_tokenizer(), batches.TokenizerConfig(16))


@pytest.fixture
def validation(prepared: prepare.Prepared) -> batches.TokenizedDataset:
    return batches.tokenize(
        prepared.tables["validation"], find_task("sst2"), tiny_tokenizer(), batches.TokenizerConfig(16)
    )


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecorder:
    """A recorder whose MLflow store lies in the test's own folder."""
    monkeypatch.chdir(tmp_path)
    with stage_run("test", params={}, tags={}, hashes={}, scratch=tmp_path / ".scratch" / "run") as made:
        yield made


@pytest.fixture
def context(
    tmp_path: Path, prepared: prepare.Prepared, encoded: batches.TokenizedDataset, validation: batches.TokenizedDataset, teacher: Path, checkpoint: Path,
    recorder: RunRecorder,
) -> MethodContext:  # fmt: skip
    """All a method is given: every column of the teacher's words, references, a student of one layer."""
    task, depth, encode = find_task("sst2"), LayerMap(student=1, teacher=2), batches.TokenizerConfig(16)
    config = read.CacheConfig("float16", batch_size=8, shard_mb=1, budget_gb=1, verify_rows=8, tolerance=0.05)
    key = read.cache_fingerprint(teacher, encode, config, CPU)
    build.build_cache(
        tmp_path / "cache", checkpoints.load_model(teacher), prepared.tables["train"],
        lambda table: batches.tokenize(table, task, tiny_tokenizer(), encode), depth.columns(), key, config, CPU,
    )  # fmt: skip
    index = retrieval.build_index(encoded)
    splits = {"train": encoded, "validation": validation}
    found = {name: retrieval.find_references(index, encoded, rows, 3) for name, rows in splits.items()}
    retrieval.save_references(tmp_path / "references", index, found)
    return MethodContext(
        task, encoded, validation, encoded.part(np.arange(0)), checkpoint, teacher, checkpoints.StudentConfig((0,)), depth,
        read.TeacherCache([tmp_path / "cache"], key), config, tmp_path / "references", None, 1, CPU, tmp_path / ".scratch" / "study",
        recorder,
    )  # fmt: skip
