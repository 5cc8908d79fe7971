"""Fixtures that tests of several rooms use; what they are made of is in tiny.py."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: tiny tensors are slower with more threads
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import filbert  # noqa: I001, F401  # before the libraries: turns off what they report
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from preloaded import preloaded_python
from tiny import CPU, ROOT, find_task, tiny_config, tiny_tokenizer, write_sst2
from transformers import BertForSequenceClassification, BertModel

from filbert.cache.build import build_cache
from filbert.cache.retrieval import build_index, find_references, save_references
from filbert.cache.teacher_cache import CacheConfig, TeacherCache, cache_fingerprint
from filbert.data.batches import TokenizedDataset, TokenizerConfig, tokenize
from filbert.data.splits import PrepareConfig, Prepared, prepare
from filbert.methods.context import MethodContext
from filbert.models import checkpoints
from filbert.tracking.mlflow_store import STORE
from filbert.tracking.run_recorder import RunRecorder, stage_run
from filbert.training.layerwise import LayerMap


# a shell's background job ignores it, and so would all that the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlflow.set_tracking_uri writes the environment: without this, every test would use the first one's store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A `python` that starts at once: tests/preloaded.py."""
    folder = tmp_path_factory.mktemp("python")
    with preloaded_python(folder, os.environ | {"HF_HOME": str(folder)}) as python:
        yield python


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Path:
    """An MLflow store that has no run yet: to make one takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    script = folder / "make.py"
    script.write_text("from filbert.tracking.mlflow_store import MlflowStore\nMlflowStore()\n")
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / STORE}"}
    subprocess.run([python, script], env=environment, check=True, cwd=ROOT)
    return folder / STORE


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Iterator[Path]:
    """An MLflow store in the test's own folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    yield shutil.copyfile(empty_store, tmp_path / STORE)
    if (
        mlflow := sys.modules.get("mlflow")
    ) and mlflow.active_run():  # of a test whose store was lost: not the next one's
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / STORE}")
        with suppress(Exception):
            mlflow.end_run()


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
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = write_sst2(tmp_path_factory.mktemp("glue"))
    return prepare(folder / "SST-2", find_task("sst2"), PrepareConfig(0.25, 0.1, 1000, 0))


@pytest.fixture
def encoded(prepared: Prepared) -> TokenizedDataset:
    return _tokenize(prepared.tables["train"])


@pytest.fixture
def validation(prepared: Prepared) -> TokenizedDataset:
    return _tokenize(prepared.tables["validation"])


def _tokenize(table: pa.Table) -> TokenizedDataset:
    return tokenize(table, find_task("sst2"), tiny_tokenizer(), TOKENIZER)


@pytest.fixture
def recorder(tmp_path: Path, store: Path) -> Iterator[RunRecorder]:
    """A recorder whose MLflow store lies in the test's own folder."""
    with stage_run("test", params={}, tags={}, hashes={}, scratch=tmp_path / ".scratch" / "run") as made:
        yield made


SPLITS = ("train", "validation")
CACHE = CacheConfig("float16", batch_size=8, shard_mb=1, budget_gb=1, verify_rows=8, tolerance=0.05)
TOKENIZER, LAYERS = TokenizerConfig(16), LayerMap(student=1, teacher=2)


@pytest.fixture(scope="session")
def cached(tmp_path_factory: pytest.TempPathFactory, prepared: Prepared, teacher: Path) -> Path:
    """A folder with `cache`, every column of the teacher's outputs on the training rows, and `references`."""
    folder, rows = tmp_path_factory.mktemp("cached"), {name: _tokenize(prepared.tables[name]) for name in SPLITS}
    key = cache_fingerprint(teacher, TOKENIZER, CACHE, CPU)
    model = checkpoints.load_model(teacher)
    build_cache(folder / "cache", model, prepared.tables["train"], _tokenize, LAYERS.columns(), key, CACHE, CPU)
    index = build_index(rows["train"])
    found = {name: find_references(index, rows["train"], rows[name], 3) for name in SPLITS}
    save_references(folder / "references", index, found)
    return folder


@pytest.fixture
def context(
    tmp_path: Path, cached: Path, encoded: TokenizedDataset, validation: TokenizedDataset, teacher: Path, checkpoint: Path,
    recorder: RunRecorder,
) -> MethodContext:  # fmt: skip
    """All a method is given: every column of the teacher's outputs, references, a student of one layer."""
    shutil.copytree(cached, tmp_path, dirs_exist_ok=True)
    cache = TeacherCache([tmp_path / "cache"], cache_fingerprint(teacher, TOKENIZER, CACHE, CPU))
    return MethodContext(
        task=find_task("sst2"), train=encoded, validation=validation, transfer=encoded.select(np.arange(0)),
        checkpoint=checkpoint, teacher=teacher, shape=checkpoints.StudentConfig((0,)), layer_map=LAYERS, cache=cache,
        cache_config=CACHE, references=tmp_path / "references", word_vectors=None, seed=1, device=CPU,
        scratch=tmp_path / ".scratch" / "context", recorder=recorder,
    )  # fmt: skip
