"""Teachers that are no BERT: RoBERTa, DistilBERT and MPNet are cached and exported, and teach what needs no cut of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_files import export_folder
from tiny import CPU, find_task, sentence_piece, sentences
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

import filbert
from filbert.cache.build import build_cache
from filbert.cache.teacher_cache import CacheConfig, TeacherCache, cache_fingerprint
from filbert.data import batches, splits
from filbert.methods import kd, tinybert, xtremedistil
from filbert.methods.context import MethodContext
from filbert.methods.xtremedistil import WeightsConfig
from filbert.models import checkpoints
from filbert.runtime.files import write_json
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig

TASK, ENCODE = find_task("sst2"), batches.TokenizerConfig(16)
FIT = TrainingConfig(2, 8, 5e-3, 0.0, "cosine", 0.0, 1.0, validations=2, patience=2)
CACHE = CacheConfig("float16", batch_size=8, shard_mb=1, budget_gb=1, verify_rows=8, tolerance=0.05)
SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
XTREMEDISTIL = xtremedistil.Config(
    xtremedistil.ShapeConfig(8, 6, "last", 0.0, "svd", "siamese", "gelu"), "stages", True, True, True, FIT, FIT, FIT,
    WeightsConfig(1, 1, 1),
)  # fmt: skip
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "roberta": lambda: RobertaModel(
        RobertaConfig(**SHAPE, max_position_embeddings=66, type_vocab_size=1, pad_token_id=0)
    ),
    "mpnet": lambda: MPNetModel(MPNetConfig(**SHAPE, max_position_embeddings=66, pad_token_id=0)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=40, dim=16, n_layers=2, n_heads=4, hidden_dim=32, max_position_embeddings=64)
    ),
}


@pytest.fixture(params=MODELS)
def taught(
    request: pytest.FixtureRequest, tmp_path: Path, context: MethodContext, prepared: splits.Prepared
) -> MethodContext:
    """A context whose teacher is of another family and tokenizer than the BERT that students are cut from."""
    torch.manual_seed(0)
    MODELS[request.param]().save_pretrained(tmp_path / "other")
    sentence_piece(-1).save_pretrained(tmp_path / "other")
    torch.manual_seed(1)
    model, folder = checkpoints.new_teacher(tmp_path / "other", TASK), tmp_path / "teacher"
    checkpoints.save(model, batches.load_tokenizer(tmp_path / "other"), folder)

    def tokenize(table: Any) -> batches.TokenizedDataset:
        return batches.tokenize(table, TASK, batches.load_tokenizer(folder), ENCODE)

    key, train = cache_fingerprint(folder, ENCODE, CACHE, CPU), prepared.tables["train"]
    columns, teacher = ("logits", "pooled", "hidden.0", "hidden.2"), checkpoints.load_model(folder)
    build_cache(tmp_path / "other-cache", teacher, train, tokenize, columns, key, CACHE, CPU)
    cache = TeacherCache([tmp_path / "other-cache"], key)
    assert max(cache.verify(tokenize(train.slice(0, 8)), columns, teacher, CACHE, CPU).values()) < 0.01
    return replace(context, teacher=folder, cache=cache, layer_map=LayerMap(1, 2))


def test_a_teacher_of_another_family_teaches_by_its_logits(taught: MethodContext) -> None:
    """A BERT student with a tokenizer of its own learns the logits that are cached."""
    settings = kd.Config(1.0, 1.0, 0.0, False, 0.0, replace(FIT, epochs=20, learning_rate=1e-2, validations=0))
    student = kd.compress(taught, settings).eval()
    batch = taught.with_targets(["logits"]).batch(np.arange(len(taught.train)))
    with torch.no_grad():
        ours = checkpoints.forward_batch(student, batch).logits.log_softmax(-1)
        fresh = checkpoints.forward_batch(taught.new_student().eval(), batch).logits.log_softmax(-1)
    target = batch.targets["logits"].softmax(-1)
    far, near = (torch.nn.functional.kl_div(x, target, reduction="batchmean") for x in (fresh, ours))
    assert near < far / 2


def test_a_bilstm_learns_from_any_teacher(taught: MethodContext, prepared: splits.Prepared) -> None:
    tokenizer = batches.load_tokenizer(taught.teacher)
    rows = batches.tokenize(prepared.tables["train"], TASK, tokenizer, ENCODE)
    student = xtremedistil.compress(
        replace(taught, train=rows, transfer=rows.select(np.arange(0)), validation=rows), XTREMEDISTIL
    )
    assert student.config.hidden_size == 16
    assert student.config.vocab_size == 40


def test_what_needs_a_cut_of_the_teacher_or_its_tokens_says_so(taught: MethodContext) -> None:
    with pytest.raises(checkpoints.ShapeError, match="expected a BERT-shaped checkpoint to cut a student from, got"):
        taught.cut_from_teacher([0])
    with pytest.raises(filbert.FilbertError, match=r"with another tokenizer use logits, pooled or words.i"):
        tinybert.compress(taught, tinybert.Config(0.0, FIT, 1.0, 0.5, FIT))


def test_a_teacher_of_another_family_is_exported(taught: MethodContext, tmp_path: Path) -> None:
    write_json(taught.teacher / "provenance.json", {"tokenizer/max_length": 16})
    pad = batches.load_tokenizer(taught.teacher).pad_token_id
    texts = [text for text, _ in sentences(12)] + ["bad"]
    ours, theirs = filbert.load(export_folder(taught.teacher, tmp_path / "onnx", pad=pad)), filbert.load(taught.teacher)
    for a, b in zip(ours.predict(texts), theirs.predict(texts), strict=True):
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)
