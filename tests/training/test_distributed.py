"""Two processes train the same model as one: the same losses, the same weights, one student."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors import safe_open
from tiny import ROOT, find_task, tiny_config, tiny_tokenizer
from tiny_graph import environment
from transformers import BertModel

from filbert.data import arrow, splits
from filbert.models.checkpoints import read_weights
from filbert.runtime import distributed
from filbert.runtime.files import write_json
from filbert.tracking.history import read_history

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def test_shares_of_a_batch_weigh_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "WORLD_SIZE", 2)
    batch, means = np.array([3.0, 5.0, 10.0]), []
    for rank in range(2):
        monkeypatch.setattr(distributed, "RANK", rank)
        share, weight = distributed.shard_batch(batch)
        means.append(share.mean() * weight)
    assert np.mean(means) == batch.mean()
    assert distributed.shard_batch(batch[:1])[1] == 0  # a row too few


PHASE = {"epochs": 2, "batch_size": 10, "learning_rate": 1e-3, "validations": 3, "min_steps": 0}


@pytest.fixture
def world(tmp_path: Path, prepared: splits.Prepared) -> Path:
    """Rows, settings, and a checkpoint in whose training nothing is drawn."""
    task = find_task("sst2")
    for name, table in prepared.tables.items():
        arrow.write_rows(table.to_pylist(), task, tmp_path / "prepared" / f"{name}.arrow")
    arrow.write_rows([], task, tmp_path / "transfer" / "transfer.arrow")
    torch.manual_seed(0)
    BertModel(tiny_config(hidden_dropout_prob=0, attention_probs_dropout_prob=0)).save_pretrained(tmp_path / "start")
    tiny_tokenizer().save_pretrained(tmp_path / "start")
    set_phase(tmp_path, PHASE)
    return tmp_path


def set_phase(folder: Path, phase: dict[str, float]) -> None:
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["training"] |= phase
    params["teacher"] = {"seeds": [0], "training": phase}
    params |= {"methods": ["kd"], "student": {"layers": [0]}}
    params["cache_columns"]["train"] = ["logits"]
    yaml.dump(params, folder / "params.yaml")


def start(folder: Path, launched: list[str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *launched, *words], cwd=folder, env=environment(PYTHONPATH=str(ROOT)), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_after_the_same_step_and_the_next_run_goes_on(world: Path) -> None:
    """Nothing else is saved: the next run knows the steps from what was written when they were stopped."""
    set_phase(world, PHASE | {"epochs": 150, "validations": 0})
    words = [*TORCHRUN, "stages.teach"], "sst2", "prepared", "start"
    finish(start(world, *words, "teachers/whole"))
    running = start(world, *words, "teachers/killed")
    while not (found := [file for file in (world / ".scratch").rglob("history.jsonl") if "killed" in str(file)]) or (
        len(read_history(found[0])) < 20
    ):
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)
    (second,) = (
        int(folder.name) for folder in Path("/proc").glob("[0-9]*")
        if b"teachers/killed" in read(folder / "cmdline") and b"\0RANK=1\0" in read(folder / "environ")
    )  # fmt: skip
    os.kill(second, signal.SIGTERM)
    said, _ = running.communicate(timeout=60)
    assert running.returncode
    assert said.count("teach: stopped by SIGTERM; the same command goes on where it was") == 2
    (state,) = found[0].parent.glob("*.safetensors")
    with safe_open(state, "pt") as saved:
        step = json.loads(saved.metadata()["place"])["step"]
    assert step >= 20
    finish(start(world, *words, "teachers/killed"))
    one, two = (read_weights(world / "teachers" / name) for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def finish(running: "subprocess.Popen[str]") -> None:
    said, _ = running.communicate()
    assert running.returncode == 0, said


def read(file: Path) -> bytes:
    with suppress(OSError):
        return file.read_bytes()
    return b""


@pytest.mark.slow
def test_two_processes_train_what_one_does(world: Path) -> None:
    """A teacher, and a student that is distilled from what the cache holds of it."""

    def stage(launched: list[str], *words: str) -> None:
        finish(start(world, launched, *words))

    def both(*words: str, out: str) -> None:
        for name, launched in (("one", []), ("two", TORCHRUN)):
            stage(launched, *words, f"{out}/{name}")
        one, two = (read_history(world / out / name / "history.jsonl") for name in ("one", "two"))
        told = ("loss", "validation_score", "best_step")
        assert len(one) == len(two) > 3
        for ours, theirs in zip(one, two, strict=True):
            assert [ours.get(name) for name in told] == pytest.approx([theirs.get(name) for name in told], abs=2e-3)
        weights = [read_weights(world / out / name) for name in ("one", "two")]
        assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-3) for name in weights[0])
        assert not list(world.rglob(".two-*"))

    both("stages.teach", "sst2", "prepared", "start", out="teachers")
    stage([], "stages.cache", "sst2", "0", "prepared", "transfer", "teachers/one", "cache/0")
    write_json(world / "vectors" / "SOURCE.json", {})  # none are read
    stage([], "stages.references", "sst2", "prepared", "start", "references", "references.json")
    read = ("prepared", "transfer", "cache", "references", "teachers/one", "start", "vectors")
    both("stages.distill", "sst2", "kd", "1", *read, out="students")
