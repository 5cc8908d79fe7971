"""A float32 graph in int8, in several ways: none is best for every model, so the gate tries them (gate.py).

Matrix products take integers on both sides: weights are quantised here, activations while the model runs (dynamic) or by ranges
found on calibration rows (static). Word embeddings get a scale for each token, a quarter of their bytes at no cost in speed.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from filbert import FilbertError

TABLE = 256  # rows from which on a table of embeddings is worth quantising
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Variant:
    """One way to quantise a graph."""

    means: str
    per_channel: bool = True  # a scale for each column of a weight, rather than one for all of it
    embeddings: bool = True  # in int8 too
    down: bool = True  # the feed-forward's second products too: their inputs have the outliers
    bits: int = 8  # of weights; with 7 no sum saturates on processors without VNNI
    activations: str = "dynamic"  # or static, float: weights are only stored in int8


VARIANTS = {
    "per_channel": Variant("a scale for each column of a weight"),
    "per_tensor": Variant("a scale for each weight", per_channel=False),
    "seven_bits": Variant("weights in 7 bits: for processors without VNNI", bits=7),
    "float_embeddings": Variant("embeddings in float32", embeddings=False),
    "float_down": Variant("the feed-forward's second products in float32", down=False),
    "static": Variant("ranges of activations from calibration rows", activations="static"),
    "weights_only": Variant("weights stored in int8, products in float32", activations="float"),
}


def quantize(file: Path, out: Path, variant: Variant, calibration: Callable[[], Iterable[Inputs]]) -> None:
    """Write the float32 graph in `file` to `out` in int8; `calibration` gives the inputs of some rows, for static ranges.

    Raises:
        FilbertError: onnxruntime cannot quantise it like this.
    """
    model = onnx.load(file)
    if variant.embeddings:
        _quantize_tables(model.graph)
    if variant.activations == "float":
        _store_weights_in_int8(model.graph)
        onnx.save(model, out)
        return
    left_out = (
        []
        if variant.down
        else [node.name for node, weight in _products(model.graph) if weight.dims[0] > weight.dims[1]]
    )
    with _quiet():
        try:
            if variant.activations == "static":
                named = [node.name for node, _ in _products(model.graph)]
                quantize_static(model, out, _Rows(iter(calibration())), QuantFormat.QDQ, ["MatMul"], variant.per_channel,
                                nodes_to_quantize=named, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip
            else:
                quantize_dynamic(model, out, ["MatMul", "LSTM"], variant.per_channel, reduce_range=variant.bits == 7,
                                 nodes_to_exclude=left_out)  # fmt: skip
        except Exception as error:  # onnxruntime raises whatever comes
            raise FilbertError(f"{file}: onnxruntime cannot quantise it: {type(error).__name__}: {error}") from error


class _Rows(CalibrationDataReader):
    def __init__(self, rows: Iterator[Inputs]):
        self.rows = rows

    def get_next(self) -> Inputs | None:
        return next(self.rows, None)


def _products(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, onnx.TensorProto]]:
    """The matrix products with a fixed weight [in, out], and that weight."""
    weights = {value.name: value for value in graph.initializer}
    return [
        (node, weights[node.input[1]]) for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights
    ]


def _quantize_tables(graph: onnx.GraphProto) -> None:
    """Store each large table of embeddings in int8 with a scale for each row; what is looked up is scaled back to float32."""
    tables = {value.name: value for value in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Gather" and node.input[0] in tables]:
        name, rows = node.input[0], node.input[1]
        table = numpy_helper.to_array(tables[name])
        if table.dtype != np.float32 or table.ndim != 2 or len(table) < TABLE:
            continue
        values, scales = _to_int8(table, axis=1)
        graph.initializer.remove(tables[name])
        graph.initializer.extend(
            [numpy_helper.from_array(values, f"{name}.int8"), numpy_helper.from_array(scales, f"{name}.scale")]
        )
        taken, scale, wide = (f"{node.output[0]}.{part}" for part in ("int8", "scale", "float"))
        new = [
            helper.make_node("Gather", [f"{name}.int8", rows], [taken], name=f"{node.name}.int8"),
            helper.make_node("Gather", [f"{name}.scale", rows], [scale], name=f"{node.name}.scale"),
            helper.make_node("Cast", [taken], [wide], name=f"{node.name}.float", to=TensorProto.FLOAT),
            helper.make_node("Mul", [wide, scale], list(node.output), name=f"{node.name}.scaled"),
        ]
        _replace(graph, node, new)


def _store_weights_in_int8(graph: onnx.GraphProto) -> None:
    """Store the weights of matrix products in int8 with a scale for each column; they become float32 when the model runs."""
    for node, weight in _products(graph):
        values, scales = _to_int8(numpy_helper.to_array(weight), axis=0)
        name = weight.name
        graph.initializer.remove(weight)
        parts = {"int8": values, "scale": scales.ravel(), "zero": np.zeros(scales.size, np.int8)}
        graph.initializer.extend([numpy_helper.from_array(array, f"{name}.{part}") for part, array in parts.items()])
        restore = helper.make_node(
            "DequantizeLinear", [f"{name}.{part}" for part in parts], [f"{name}.float"], name=f"{name}.restore", axis=1
        )
        node.input[1] = f"{name}.float"
        _replace(graph, node, [restore, onnx.NodeProto.FromString(node.SerializeToString())])


def _to_int8(table: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers from -127 to 127, and the scales along `axis` that restore them."""
    scales = np.maximum(np.abs(table).max(axis, keepdims=True), 1e-12).astype(np.float32) / 127
    return np.rint(table / scales).astype(np.int8), scales


def _replace(graph: onnx.GraphProto, node: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
    at = next(number for number, other in enumerate(graph.node) if other is node or other.name == node.name)
    before, after = list(graph.node[:at]), list(graph.node[at + 1 :])
    copies = [onnx.NodeProto.FromString(other.SerializeToString()) for other in (*before, *new, *after)]
    del graph.node[:]
    graph.node.extend(copies)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice on every file."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
