"""int8: what each variant stores and answers, and the gate that lets a file through or not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_files import MODELS, WIDE, reference_student, saved, varied
from tiny import find_task, tiny_config
from transformers import BertForSequenceClassification

from filbert import FilbertError
from filbert.data import batches
from filbert.evaluation.latency import LatencyConfig
from filbert.export import gate, int8
from filbert.export.gate import ExportConfig, OnnxModel
from filbert.export.onnx import export_onnx
from filbert.export.session import new_session
from filbert.models.checkpoints import predict_logits
from filbert.runtime import config

CONFIG = ExportConfig(1e-3, 20, 100.0, tuple(int8.VARIANTS), 10, 16, 8, (0.9,))
TIMING = LatencyConfig((1, 32), 0, 2, 1)
TASK = find_task("sst2")


def wide_bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(tiny_config(**WIDE))


def exported(model: object, folder: Path) -> Path:
    saved(model, folder)  # type: ignore[arg-type]
    export_onnx(folder, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("variant", int8.VARIANTS)
def test_each_variant_answers_nearly_as_float32(
    variant: str, tmp_path: Path, encoded: batches.TokenizedDataset
) -> None:
    file, rows = exported(wide_bert(), tmp_path), varied(encoded)
    int8.quantize(
        file, tmp_path / "int8.onnx", int8.VARIANTS[variant], lambda: gate._inputs(file, tmp_path, rows, CONFIG)
    )
    wanted, found = (predict_logits(OnnxModel(tmp_path, f), rows, 8, gate.CPU) for f in (file, tmp_path / "int8.onnx"))
    spread = wanted.max() - wanted.min()
    assert 0 < np.abs(found - wanted).mean() < 0.1 * spread


@pytest.mark.parametrize(
    "kind", ["bilstm, max", "bilstm, last", "bilstm, pairs", "bilstm, tags", "uneven widths, factorised"]
)
def test_other_students_in_int8(kind: str, tmp_path: Path, encoded: batches.TokenizedDataset) -> None:
    torch.manual_seed(0)
    file, rows = exported(MODELS[kind](), tmp_path), varied(encoded)
    int8.quantize(file, tmp_path / "int8.onnx", int8.VARIANTS["per_channel"], lambda: [])
    if "bilstm" in kind:
        assert "DynamicQuantizeLSTM" in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    batch = rows.batch(np.arange(12))
    wanted, found = (
        OnnxModel(tmp_path, f)(batch.ids, batch.mask, batch.types).logits for f in (file, tmp_path / "int8.onnx")
    )
    if wanted.ndim == 3:
        wanted, found = wanted[batch.mask], found[batch.mask]
    assert (found - wanted).abs().mean() < 0.1 * (wanted.max() - wanted.min())


def test_sums_do_not_overflow_on_any_processor(tmp_path: Path) -> None:
    """The largest products that 8 bits have, of which 16 bits hold one: the sum is that of integers."""
    weight, x = np.full((64, 8), 127, np.int8), np.full((4, 64), 255, np.uint8)
    inputs = [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, x.shape)]
    outputs = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, (4, 8))]
    node = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "product", inputs, outputs, [onnx.numpy_helper.from_array(weight, "w")])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, tmp_path / "product.onnx")
    found = new_session(tmp_path / "product.onnx").run(None, {"x": x})[0]
    assert (found == 64 * 127 * 255).all()


def test_a_table_of_embeddings_is_an_eighth_of_a_point_off_at_most(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(tiny_config(**WIDE))
    model.resize_token_embeddings(300)
    file = exported(model, tmp_path)
    int8.quantize(
        file, tmp_path / "int8.onnx", replace(int8.VARIANTS["weights_only"], activations="dynamic"), lambda: []
    )
    table = model.bert.embeddings.word_embeddings.weight.detach().numpy()
    found = {v.name: onnx.numpy_helper.to_array(v) for v in onnx.load(tmp_path / "int8.onnx").graph.initializer}
    values, scales = (
        next(found[name] for name in found if "word_embeddings" in name and name.endswith(end))
        for end in ("int8", "scale")
    )
    assert values.dtype == np.int8
    assert np.abs(values * scales - table).max() <= np.abs(table).max() / 127 / 2 * 1.001


def answers(store: Path) -> gate.Answers:
    return gate.Answers(store, CONFIG.batch_size)


def test_the_fastest_that_passes_is_published(tmp_path: Path, encoded: batches.TokenizedDataset) -> None:
    file = exported(wide_bert(), tmp_path)
    passed, records = gate.choose_int8(file, answers(tmp_path), tmp_path, TASK, encoded, encoded, CONFIG, TIMING)
    assert records[0].variant == "float32"
    assert {record.variant for record in records} == {"float32", *int8.VARIANTS}
    verdicts = [record.verdict for record in records[1:]]
    if passed:
        assert verdicts.count("published") == 1
        assert records[1].verdict == "published"
        assert passed == tmp_path / f"{records[1].variant}.onnx"
    assert set(verdicts) <= {"published", "not tried"}  # nothing is refused where 100 points may be lost


def test_the_gate_refuses_what_costs_too_much(
    tmp_path: Path, encoded: batches.TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, scores = exported(wide_bert(), tmp_path), {"model": 90.0, "per_channel": 89.4, "per_tensor": 80.0}
    monkeypatch.setattr(gate, "score_model", lambda file, *_: scores[file.stem])
    monkeypatch.setattr(gate, "time_models", lambda models, *_: {
        name: {"1": {"minimum": speed}} for name, speed in zip(models, (3.0, 2.0, 1.0), strict=True)})  # fmt: skip
    settings = replace(CONFIG, variants=("per_channel", "per_tensor"), max_drop=0.5)
    passed, records = gate.choose_int8(file, answers(tmp_path), tmp_path, TASK, encoded, encoded, settings, TIMING)
    assert passed is None
    assert [(r.variant, r.verdict) for r in records[1:]] == [("per_tensor", "refused"), ("per_channel", "refused")]
    assert records[1].why == "+10.00 points below float32, 0.5 allowed"
    passed, records = gate.choose_int8(
        file, answers(tmp_path), tmp_path, TASK, encoded, encoded, replace(settings, max_drop=1.0), TIMING
    )
    assert passed == tmp_path / "per_channel.onnx"
    assert [record.verdict for record in records] == ["published", "refused", "published"]


def test_references_pass_the_gate_too(tmp_path: Path, encoded: batches.TokenizedDataset) -> None:
    torch.manual_seed(0)
    folder = reference_student(tmp_path / "model", encoded)
    export_onnx(folder, folder / "model.onnx")
    settings = replace(CONFIG, variants=("per_channel", "static"))
    _, records = gate.choose_int8(
        folder / "model.onnx", answers(folder), tmp_path, TASK, encoded, encoded, settings, TIMING
    )
    assert not [record for record in records if record.verdict == "failed"]


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    text = "export: {tolerance: 0.001, check_alone: 0, max_drop: 0.5, variants: [best], score_alone: 0, calibration_rows: 1,\n"
    text += "  batch_size: 1, precisions: [0.9]}\n"
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(FilbertError, match=r"export: variants: expected some of per_channel, .*, got best"):
        config.section("export", ExportConfig, tmp_path / "params.yaml")
