"""A saved teacher or student as an ONNX graph in float32, and the proof on logits that it answers as the model does.

Encoders are traced (`torch.onnx.export`); a BiLSTM is written node by node, because a traced packed sequence pads with zeros before
the maximum over time is taken. Batch and length are free. Inputs are called as the model's: input_ids, attention_mask, perhaps
token_type_ids [B, T] int64; of a student that reads references also reference_keys, reference_values [B, R, D] float32 and
reference_mask [B, R] int64.
"""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from transformers import PreTrainedModel

from filbert import FilbertError
from filbert.data.batches import Batch, TokenizedDataset
from filbert.export.session import new_session
from filbert.models import checkpoints
from filbert.models.bert import FilbertForSequenceClassification
from filbert.models.bilstm import BiLstmForSequenceClassification, BiLstmForTokenClassification
from filbert.models.reference_bert import REFERENCE, ReferenceForSequenceClassification

MIXED_BATCH = 8  # rows of mixed length: more are padded more
OPSET = 17  # the first with LayerNormalization as one node
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
AXES = {"input_ids": {0: "batch", 1: "length"}, "reference_keys": {0: "batch", 1: "reference"}}


class ExportError(FilbertError):
    """A model cannot be exported, or its export does not answer as the model does."""


def export_onnx(folder: Path, file: Path) -> None:
    """Write the model saved in `folder` to `file`.

    Raises:
        ExportError: torch cannot trace it.
    """
    model = checkpoints.as_filbert(checkpoints.load_model(folder))
    if isinstance(model, BiLstmForSequenceClassification):
        onnx.save(bilstm_graph(model), file)
        return
    wrapper = Positional(model)
    with warnings.catch_warnings(action="ignore"):
        try:
            torch.onnx.export(
                wrapper, wrapper.example(), str(file), input_names=list(wrapper.inputs), output_names=["logits"],
                dynamic_axes=wrapper.axes(), opset_version=OPSET, dynamo=False,
            )  # fmt: skip
        except (RuntimeError, TypeError, ValueError, torch.onnx.errors.OnnxExporterError) as error:
            raise ExportError(
                f"{folder}: expected a model that torch can export to ONNX, got {type(model).__name__}: {error}"
            ) from error
    wrapper.eval()  # the exporter puts the wrapper, and with it the model, into its training mode
    _drop_unused_inputs(file)


class Positional(nn.Module):
    """A model whose inputs are given in order and whose one output is its logits: what the exporter takes. The graph has
    of our own encoder's last layer the first token alone."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        known = inspect.signature(type(model).forward).parameters
        names = (*TOKENS, *REFERENCE) if isinstance(model, ReferenceForSequenceClassification) else TOKENS
        self.inputs = tuple(name for name in names if name in known)
        self.more = {"logits_alone": True} if "logits_alone" in known else {}
        if not isinstance(model, FilbertForSequenceClassification):
            model.set_attn_implementation("eager")
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.inputs, inputs, strict=True))
        if "reference_mask" in given:
            given["reference_mask"] = given["reference_mask"].bool()
        return self.model(**given, **self.more).logits

    def example(self) -> tuple[Tensor, ...]:
        """Two rows of unequal length, with references of unequal length."""
        mask, held = torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)
        mask[1, 4:], held[1, 3:] = 0, 0
        ids = torch.full((2, 7), 3)
        width = getattr(self.model.config, "reference_size", 0)
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": torch.zeros_like(ids),
            "reference_mask": held,
        }
        keys = torch.linspace(-1, 1, 2 * 5 * width).view(2, 5, width)
        given |= {"reference_keys": keys, "reference_values": keys.flip(0)}
        return tuple(given[name] for name in self.inputs)

    def axes(self) -> dict[str, dict[int, str]]:
        """The free axes of each input and of the logits."""
        tokens, reference = AXES["input_ids"], AXES["reference_keys"]
        free = {name: reference if name in REFERENCE else tokens for name in self.inputs}
        return free | {"logits": tokens if "TokenClassification" in type(self.model).__name__ else {0: "batch"}}


def _drop_unused_inputs(file: Path) -> None:
    """Remove inputs that no node reads, such as the segments of a model that has none."""
    model = onnx.load(file)
    read = {name for node in model.graph.node for name in node.input}
    for given in [given for given in model.graph.input if given.name not in read]:
        model.graph.input.remove(given)
    onnx.save(model, file)


def bilstm_graph(model: BiLstmForSequenceClassification) -> onnx.ModelProto:
    """The graph of a BiLSTM: ONNX's own LSTM runs each row of a batch to its own length in both directions."""
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    tags, last = isinstance(model, BiLstmForTokenClassification), model.config.pooling == "last"
    units = model.config.lstm_size
    graph, siamese = Graph(), model.config.pairs == "siamese"
    one = graph.constant("one", np.array([1]))
    ids, mask = graph.split_pairs(one, model.config.sep_token_id) if siamese else TOKENS[:2]
    row = graph.add("Gather", graph.constant("rows", weights["rows"]), ids)
    x = graph.add("Gather", graph.constant("embedding", weights["embedding.weight"]), row)
    by_time = graph.add("Transpose", x, perm=[1, 0, 2])
    lengths = graph.add("Cast", graph.add("ReduceSum", mask, one, keepdims=0), to=TensorProto.INT32)
    parts = (graph.constant(name, _both_directions(weights, name)) for name in ("weight_ih", "weight_hh", "bias"))
    states, ends = graph.add(
        "LSTM", by_time, *parts, lengths, outputs=2, hidden_size=units, direction="bidirectional"
    )  # [T, 2, B, H], [2, B, H]
    batched = graph.add("Transpose", states, perm=[2, 0, 1, 3])
    read = graph.add("Reshape", batched, graph.constant("flat", np.array([0, 0, 2 * units])))
    if last and not tags:
        ends = graph.add("Transpose", ends, perm=[1, 0, 2])
        read = graph.add("Reshape", ends, graph.constant("both", np.array([0, 2 * units])))
    elif not tags:
        real = graph.add(
            "Unsqueeze", graph.add("Cast", mask, to=TensorProto.BOOL), graph.constant("two", np.array([2]))
        )
        lowest = graph.constant("lowest", np.array(-np.inf, np.float32))
        read = graph.add("ReduceMax", graph.add("Where", real, read, lowest), axes=[1], keepdims=0)
    if siamese:
        u, v = graph.add("Split", read, outputs=2, axis=0)
        difference = graph.add("Abs", graph.add("Sub", u, v))
        read = graph.add("Concat", u, v, difference, graph.add("Mul", u, v), axis=1)
    activations = {"gelu": graph.gelu, "tanh": lambda x: graph.add("Tanh", x), "identity": lambda x: x}
    hidden = activations[model.config.activation](graph.linear(read, weights, "dense"))
    logits = graph.linear(hidden, weights, "classifier")
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    return graph.model({"logits": ("batch", "length", "labels") if tags else ("batch", "labels")})


def _both_directions(weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """An LSTM's weights of both directions [2, 4H, …], gates in ONNX's order i, o, f, c instead of torch's i, f, c, o."""

    def direction(suffix: str) -> np.ndarray:
        parts = ("bias_ih", "bias_hh") if name == "bias" else (name,)
        return np.concatenate([_reorder(weights[f"lstm.{part}_l0{suffix}"]) for part in parts])

    return np.stack([direction(""), direction("_reverse")])


def _reorder(gates: np.ndarray) -> np.ndarray:
    i, f, c, o = np.split(gates, 4)
    return np.concatenate([i, o, f, c])


class Graph:
    """An ONNX graph that is written node by node; values are known by name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node; the name of its output, or of its first outputs."""
        number = len(self.nodes)
        names = [f"{kind}_{number}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{number}", **attributes))
        return names[0] if outputs == 1 else names

    def linear(self, x: str, weights: dict[str, np.ndarray], name: str) -> str:
        product = self.add("MatMul", x, self.constant(f"{name}.weight", weights[f"{name}.weight"].T))
        return self.add("Add", product, self.constant(f"{name}.bias", weights[f"{name}.bias"]))

    def gelu(self, x: str) -> str:
        root, one, half = (self.constant(f"gelu.{n}", np.array(v, np.float32)) for n, v in enumerate((2**0.5, 1, 0.5)))
        erf = self.add("Add", self.add("Erf", self.add("Div", x, root)), one)
        return self.add("Mul", self.add("Mul", x, erf), half)

    def split_pairs(self, one: str, separator: int) -> tuple[str, str]:
        """Ids and mask of the texts of pairs, [2B, T'] int64, as `filbert.models.bilstm.split_pairs` makes them."""
        ids, mask = TOKENS[:2]
        zero, single = self.constant("zero", np.array(0)), self.constant("single", np.array(1))
        ends = self.add("Equal", ids, self.constant("separator", np.array(separator)))
        before = self.add("CumSum", self.add("Cast", ends, to=TensorProto.INT64), single, exclusive=1)
        early = self.add("Cast", self.add("Equal", before, zero), to=TensorProto.INT64)
        first = self.add("ReduceSum", self.add("Mul", early, mask), one)  # [B, 1], as all lengths here
        others = self.add("Sub", self.add("ReduceSum", mask, one), first)
        start = self.add("Concat", self.add("Mul", first, zero), first, axis=0)
        length = self.add("Max", self.add("Concat", first, others, axis=0), single)
        column = self.add("Range", zero, self.add("ReduceMax", length, keepdims=0), single)
        shape = self.add("Gather", self.add("Shape", ids), single)
        at = self.add("Min", self.add("Add", start, column), self.add("Sub", shape, single))
        both = self.add("GatherElements", self.add("Concat", ids, ids, axis=0), at, axis=1)
        return both, self.add("Cast", self.add("Less", column, length), to=TensorProto.INT64)

    def model(self, outputs: dict[str, Sequence[str]]) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in TOKENS[:2]]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(self.nodes, "filbert", inputs, ends, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


@dataclass(frozen=True)
class LogitsCheck:
    """How far an exported file's logits are from the model's: the largest absolute difference, and the rows that were asked."""

    mixed: float  # in batches of rows of mixed length
    alone: float  # one row at a time
    rows: int

    @property
    def largest(self) -> float:
        return float(np.maximum(self.mixed, self.alone))


def check_logits(
    folder: Path,
    file: Path,
    rows: TokenizedDataset,
    tolerance: float | None = 1e-3,
    alone: int | None = None,
) -> LogitsCheck:
    """Compare the model in `folder` with its export `file` on all `rows` in batches of mixed length, and `alone` of them, or all,
    one by one.

    Raises:
        ExportError: a logit differs by more than `tolerance`.
    """
    model, session = checkpoints.load_model(folder), new_session(file)
    order = np.random.default_rng(0).permutation(len(rows))
    mixed = [order[start : start + MIXED_BATCH] for start in range(0, len(order), MIXED_BATCH)]
    single = [order[at : at + 1] for at in range(len(order))][:alone]
    in_batches, one_by_one = (
        float(np.max([_difference(model, session, rows.batch(at)) for at in part], initial=0.0))
        for part in (mixed, single)
    )  # np.max keeps what is no number
    found = LogitsCheck(in_batches, one_by_one, len(rows))
    if tolerance is not None and not found.largest <= tolerance:
        raise ExportError(
            f"{file}: expected logits within {tolerance:g} of the model in {folder}, got {found.mixed:.2g} in mixed batches and "
            f"{found.alone:.2g} alone"
        )
    return found


def _difference(model: PreTrainedModel, session: Any, batch: Batch) -> float:
    with torch.inference_mode():
        theirs = checkpoints.forward_batch(model, batch).logits.float().numpy()
    ours = session.run(None, session_inputs(model, session, batch))[0]
    if ours.ndim == 3:  # tags of padding mean nothing
        ours, theirs = ours[batch.mask.numpy()], theirs[batch.mask.numpy()]
    return float(np.abs(ours - theirs).max())


def session_inputs(model: Any, session: Any, batch: Batch) -> dict[str, np.ndarray]:
    """What a session is fed for a batch; references are those that the model itself finds."""
    given = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "token_type_ids": batch.types}
    names = {value.name for value in session.get_inputs()}
    if names & set(REFERENCE):
        keys, values, held = model.references(batch.ids, batch.mask)
        given |= dict(zip(REFERENCE, (keys, values, held.long()), strict=True))
    return {name: value.numpy() for name, value in given.items() if name in names}
