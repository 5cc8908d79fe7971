"""The size of a model: parameters, multiply-adds, bytes of its weight files, and its shape in a few numbers."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from filbert.data.batches import Batch, TokenizedDataset
from filbert.models.bert import FilbertConfig
from filbert.models.bilstm import BiLstmConfig
from filbert.models.checkpoints import forward_batch
from filbert.models.reference_store import FOLDER as STORE


def count_parameters(model: nn.Module) -> int:
    """The number of parameters; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_prunable(model: nn.Module) -> int:
    """The parameters that ROSITA can prune: of the encoder's layers and the word embedding with its projection, without
    positions, token types, pooler and classifier."""
    return sum(p.numel() for name, p in model.named_parameters() if "encoder.layer." in name or ".word_" in name)


def model_shape(config: Any) -> dict[str, Any]:
    """Layers and width; of a student pruned in width also heads and neurons of each layer and the embedding's rank; of a BiLSTM
    the embedding's width, the units of each direction and the dense layer's width."""
    if isinstance(config, BiLstmConfig):
        return {"embedding": config.embedding_size, "lstm": config.lstm_size, "hidden": config.hidden_size}
    shape = {"layers": config.num_hidden_layers, "hidden": config.hidden_size}
    if isinstance(config, FilbertConfig) and not config.is_even:
        shape |= {"heads": config.layer_heads, "intermediate": config.layer_intermediate, "rank": config.embedding_size}
    return shape


def weight_bytes(folder: Path) -> int:
    """The bytes of the safetensors files in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def multiply_adds(model: nn.Module, batch: Batch) -> int:
    """Multiply-adds of all matrix products of one forward pass, as torch counts them while it runs."""
    fused = {torch.ops.aten.mkldnn_rnn_layer: _lstm_flops}
    with (
        FlopCounterMode(display=False, custom_mapping=fused) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.inference_mode(),
    ):
        forward_batch(model.eval(), batch)
    return counter.get_total_flops() // 2


def _lstm_flops(x: torch.Size, input_weight: torch.Size, state_weight: torch.Size, *_: Any, **__: Any) -> int:
    """Of one direction of oneDNN's LSTM, which torch does not count: x [T, B, E], weights [4H, E] and [4H, H]."""
    return 2 * math.prod(x[:2]) * (math.prod(input_weight) + math.prod(state_weight))


def measure_size(model: nn.Module, folder: Path, teacher: nn.Module, rows: TokenizedDataset) -> dict[str, float]:
    """The figures of size of a model saved in `folder`, some relative to its teacher; multiply-adds are of the row of median
    length."""
    count = count_parameters(model)
    figures = {
        "parameters": count,
        "bytes": weight_bytes(folder),
        "multiply_adds": multiply_adds(model, representative_batch(rows, 1)),
        "smaller": count_parameters(teacher) / count,
    }
    if count_prunable(model):
        figures["smaller_prunable"] = count_prunable(teacher) / count_prunable(model)
    if (folder / STORE).exists():
        figures["store_bytes"] = sum(file.stat().st_size for file in (folder / STORE).rglob("*") if file.is_file())
    return figures


def representative_batch(rows: TokenizedDataset, size: int) -> Batch:
    """A batch of `size` rows, spread evenly over the order by length; for 1, the row of median length."""
    return rows.batch(spread_rows(rows, size))


def spread_rows(rows: TokenizedDataset, size: int) -> np.ndarray:
    """The positions of those rows [size]."""
    return np.argsort(rows.lengths, kind="stable")[spread(len(rows), size)]


def spread(count: int, size: int) -> np.ndarray:
    """`size` of `count` numbers from 0, spread evenly: the middles of as many equal parts."""
    return ((np.arange(size) + 0.5) / size * count).astype(int)
