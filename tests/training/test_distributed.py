"""Two processes train the same model as one: the same losses, the same weights, one student."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
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


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path, prepared: splits.Prepared) -> None:
    """A teacher, and a student that is distilled from what the cache holds of it; nothing is drawn in their training."""
    task = find_task("sst2")
    for name, table in prepared.tables.items():
        arrow.write_rows(table.to_pylist(), task, tmp_path / "prepared" / f"{name}.arrow")
    arrow.write_rows([], task, tmp_path / "transfer" / "transfer.arrow")
    torch.manual_seed(0)
    BertModel(tiny_config(hidden_dropout_prob=0, attention_probs_dropout_prob=0)).save_pretrained(tmp_path / "start")
    tiny_tokenizer().save_pretrained(tmp_path / "start")
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    fit = {"epochs": 2, "batch_size": 10, "learning_rate": 1e-3, "validations": 3, "min_steps": 0}
    params["training"] |= fit
    params["teacher"] = {"seeds": [0], "training": fit}
    params |= {"methods": ["kd"], "student": {"layers": [0]}}
    params["cache_columns"]["train"] = ["logits"]
    yaml.dump(params, tmp_path / "params.yaml")

    def stage(launched: list[str], *words: str) -> None:
        subprocess.run(
            [sys.executable, "-m", *launched, *words],
            cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT)), check=True, capture_output=True,
        )  # fmt: skip

    def both(*words: str, out: str) -> None:
        for name, launched in (("one", []), ("two", TORCHRUN)):
            stage(launched, *words, f"{out}/{name}")
        one, two = (read_history(tmp_path / out / name / "history.jsonl") for name in ("one", "two"))
        told = ("loss", "validation_score", "best_step")
        assert len(one) == len(two) > 3
        for ours, theirs in zip(one, two, strict=True):
            assert [ours.get(name) for name in told] == pytest.approx([theirs.get(name) for name in told], abs=2e-3)
        weights = [read_weights(tmp_path / out / name) for name in ("one", "two")]
        assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-3) for name in weights[0])
        assert not list(tmp_path.rglob(".two-*"))

    both("stages.teach", "sst2", "prepared", "start", out="teachers")
    stage([], "stages.cache", "sst2", "0", "prepared", "transfer", "teachers/one", "cache/0")
    write_json(tmp_path / "vectors" / "SOURCE.json", {})  # none are read
    stage([], "stages.references", "sst2", "prepared", "start", "references", "references.json")
    read = ("prepared", "transfer", "cache", "references", "teachers/one", "start", "vectors")
    both("stages.distill", "sst2", "kd", "1", *read, out="students")
