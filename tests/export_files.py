"""Saved models of every kind, a reference store and rows of many lengths, for the tests of exports."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from ruamel.yaml import YAML
from tiny import ROOT, tiny_config, tiny_tokenizer
from transformers import (
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
)

from filbert.cache.retrieval import build_index, row_tokens
from filbert.data.batches import TokenizedDataset
from filbert.export import folder as folders
from filbert.export.folder import ModelCard
from filbert.export.onnx import export_onnx
from filbert.models import checkpoints
from filbert.models.bert import FilbertConfig, FilbertForSequenceClassification
from filbert.models.bilstm import BiLstmConfig, BiLstmForSequenceClassification, BiLstmForTokenClassification
from filbert.models.reference_bert import ReferenceConfig, ReferenceForSequenceClassification
from filbert.models.reference_store import token_hash
from filbert.runtime import config
from filbert.runtime.files import write_json

WIDE = {"initializer_range": 0.5}


def bilstm(kind: type = BiLstmForSequenceClassification, **more: object) -> PreTrainedModel:
    model = kind(BiLstmConfig(vocab_size=35, kept_vocab_size=20, embedding_size=8, lstm_size=6, hidden_size=16, **more))
    model.rows.copy_(torch.arange(35) % 20)
    return model


def uneven() -> PreTrainedModel:
    shape = {"head_size": 4, "layer_heads": [3, 1], "layer_intermediate": [20, 7], "embedding_size": 6}
    return FilbertForSequenceClassification(FilbertConfig(**tiny_config(**WIDE).to_dict() | shape))


MODELS = {
    "uneven widths, factorised": uneven,
    "bilstm, max": lambda: bilstm(pooling="max"),
    "bilstm, last": lambda: bilstm(pooling="last"),
    "bilstm, pairs": lambda: bilstm(pooling="max", pairs="siamese", sep_token_id=18),
    "bilstm, pairs by the last state": lambda: bilstm(pairs="siamese", sep_token_id=18, activation="tanh"),
    "bilstm, identity": lambda: bilstm(pooling="max", activation="identity"),
    "bilstm, tags": lambda: bilstm(BiLstmForTokenClassification, num_labels=7),
    "bert, tags": lambda: BertForTokenClassification(tiny_config(num_labels=7, **WIDE)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=35, dim=16, n_layers=2, n_heads=4, hidden_dim=32, max_position_embeddings=64)
    ),
}


def saved(model: PreTrainedModel, folder: Path) -> Path:
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lstm" in name:
                value.mul_(4)  # states that differ by more than the tolerance
    checkpoints.save(model.eval(), tiny_tokenizer(), folder)
    return folder


def reference_student(folder: Path, encoded: TokenizedDataset, norm: str = "reference", kind: str = "nearest") -> Path:
    """A student that reads two references of a row, with its store."""
    config = ReferenceConfig(**tiny_config(**WIDE).to_dict(), reference_size=16, reference_norm=norm)
    saved(ReferenceForSequenceClassification(config), folder)
    store = folder / "references"
    store.mkdir()
    write_json(store / "store.json", {"kind": kind, "count": 2, "width": 16})
    build_index(encoded).save(store / "index")
    hashes = [token_hash(row_tokens(encoded, row)) for row in range(len(encoded))]
    np.save(store / "token_hashes.npy", np.array(hashes, np.uint64))
    np.save(store / "offsets.npy", encoded.offsets)
    draw = np.random.default_rng(0)
    for name in ("keys", "values"):
        np.save(store / f"{name}.npy", draw.integers(-127, 128, (len(encoded.ids), 16)).astype(np.int8))
        np.save(store / f"{name}.scale.npy", draw.random(len(encoded.ids)).astype(np.float32) / 64)
    return folder


def varied(rows: TokenizedDataset) -> TokenizedDataset:
    """The same rows cut to lengths from 2 tokens on."""
    cut = [row[: 2 + i % (len(row) - 1)] for i, row in enumerate(np.split(rows.ids, rows.offsets[1:-1]))]
    ids, offsets = np.concatenate(cut), np.cumsum([0, *map(len, cut)])
    return replace(rows, ids=ids, types=np.zeros(len(ids), np.uint8), offsets=offsets)


def export_folder(student: Path, out: Path, **more: object) -> Path:
    """A minimal exported folder of a saved model."""
    out.mkdir(parents=True)
    export_onnx(student, out / folders.FLOAT32)
    shutil.copyfile(student / "tokenizer.json", out / "tokenizer.json")
    if (student / "references").exists():
        shutil.copytree(student / "references", out / "references")
    fields = {"kind": "single", "columns": ("sentence",), "labels": ("negative", "positive"), "model": folders.FLOAT32}
    folders.write_card(
        ModelCard(**{"task": "sst2", "student": "kd", "seed": 1, "max_length": 16, "pad": 0} | fields | more), out
    )
    file, scores = str((fields | more)["model"]), {"score": 0.8, "interval": [0.7, 0.9]}
    record = {
        "files": {file: {"validation": scores, "test": scores, "bytes": 9e6, "model_bytes": 8e6}},
        "calibration": {file: {**CALIBRATION, **{k: v for k, v in more.items() if k in CALIBRATION}}},
        "logits": {"mixed": 1e-6, "alone": 1e-6, "rows": 9, "rows_alone": 9},
        "variants": [{"variant": "float32", "verdict": "published", "why": "the reference", "score": 80.0, "bytes": 8e6,
                      "milliseconds": {"1": {"median": 1.0}}}],
        "threads": 1, "provenance": {"stage": "distill"}, "versions": {"torch": "2"},
    }  # fmt: skip
    write_json(out / folders.RECORD, record)
    return out


CALIBRATION = {"temperature": 1.0, "thresholds": {}, "error_before": 0.05, "error_after": 0.04}
EXPORT = {
    "tolerance": 1e-3, "check_alone": 5, "max_drop": 0.5, "variants": ["per_channel", "per_tensor"], "score_alone": 5,
    "calibration_rows": 8, "batch_size": 8, "precisions": [0.5, 0.9],
}  # fmt: skip
LATENCY = {"batch_sizes": [1, 32], "warmup": 0, "rounds": 2, "threads": 1}


def write_params(file: Path, **export: object) -> None:
    """The project's settings, with those of exports for a tiny world."""
    params = config.read_params(ROOT / "params.yaml") | {"export": EXPORT | export, "latency": LATENCY}
    YAML(typ="safe").dump(params, file)
