"""Exported graphs answer as the models do: every kind of model, batches of mixed length and rows alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_files import MODELS, reference_student, saved, varied

from filbert.data import batches
from filbert.export.onnx import ExportError, Positional, check_logits, export_onnx
from filbert.models import checkpoints


@pytest.mark.parametrize("kind", MODELS)
def test_an_export_answers_as_the_model(kind: str, tmp_path: Path, validation: batches.TokenizedDataset) -> None:
    torch.manual_seed(0)
    folder = saved(MODELS[kind](), tmp_path / "model")
    export_onnx(folder, tmp_path / "model.onnx")
    found = check_logits(folder, tmp_path / "model.onnx", varied(validation), 1e-4)
    assert found.rows > 8


def test_a_teacher_answers_alike_and_its_segments_count(
    tmp_path: Path, teacher: Path, validation: batches.TokenizedDataset
) -> None:
    export_onnx(teacher, tmp_path / "model.onnx")
    pairs = replace(varied(validation), types=(np.arange(len(varied(validation).types)) % 2).astype(np.uint8))
    check_logits(teacher, tmp_path / "model.onnx", pairs, 1e-4)


def test_the_last_layer_of_a_graph_is_that_of_the_first_token(teacher: Path) -> None:
    model, widths = checkpoints.as_filbert(checkpoints.load_model(teacher)), []
    for layer in model.bert.encoder.layer:
        layer.intermediate["dense"].register_forward_hook(lambda _, given, __: widths.append(given[0].shape[1]))
    traced = Positional(model)
    traced(*traced.example())
    assert widths == [7, 1]


@pytest.mark.parametrize("norm", ["none", "reference", "joint", "statistics"])
def test_a_student_that_reads_references(
    norm: str, tmp_path: Path, encoded: batches.TokenizedDataset, validation: batches.TokenizedDataset
) -> None:
    torch.manual_seed(0)
    folder = reference_student(tmp_path / "model", encoded, norm)
    export_onnx(folder, tmp_path / "model.onnx")
    check_logits(folder, tmp_path / "model.onnx", varied(validation), 1e-4)


def test_a_wrong_export_is_refused(tmp_path: Path, teacher: Path, validation: batches.TokenizedDataset) -> None:
    export_onnx(teacher, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    bias = next(value for value in graph.graph.initializer if value.name.endswith("classifier.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
    onnx.save(graph, tmp_path / "wrong.onnx")
    with pytest.raises(ExportError, match=r"expected logits within 0.001 of the model in .*, got 0.01 in mixed"):
        check_logits(teacher, tmp_path / "wrong.onnx", validation)
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(2, np.nan, np.float32), bias.name))
    onnx.save(graph, tmp_path / "wrong.onnx")
    with pytest.raises(ExportError, match="got nan in mixed"):
        check_logits(teacher, tmp_path / "wrong.onnx", validation)
