"""How large a model is: parameters, multiply-adds, bytes of its weight files, and its shape in a few numbers."""

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


def count_parameters(model: nn.Module) -> int:
    """How many numbers the model holds; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_prunable(model: nn.Module) -> int:
    """How many of them lie where ROSITA cuts: in the encoder's layers and the word embedding with its projection; positions,
    segments, pooler and classifier are left out."""
    return sum(p.numel() for name, p in model.named_parameters() if "encoder.layer." in name or ".word_" in name)


def model_shape(config: Any) -> dict[str, Any]:
    """Layers and width, and of a student that was cut in width, heads and neurons of each layer and the embedding's rank; of a
    BiLSTM its embedding, the units of each direction and the dense layer's width."""
    if isinstance(config, BiLstmConfig):
        return {"embedding": config.embedding_size, "lstm": config.lstm_size, "hidden": config.hidden_size}
    found = {"layers": config.num_hidden_layers, "hidden": config.hidden_size}
    if isinstance(config, FilbertConfig) and not config.is_even:
        found |= {"heads": config.layer_heads, "intermediate": config.layer_intermediate, "rank": config.embedding_size}
    return found


def weight_bytes(folder: Path) -> int:
    """The size of the weight files as saved."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def multiply_adds(model: nn.Module, batch: Batch) -> int:
    """Multiply-adds of all matrix products of one forward pass, counted by torch while it runs."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        forward_batch(model.eval(), batch)
    return counter.get_total_flops() // 2


def representative_batch(rows: TokenizedDataset, size: int) -> Batch:
    """A batch of `size` rows spread evenly over the lengths that occur; for 1, the row of median length."""
    return rows.batch(spread_rows(rows, size))


def spread_rows(rows: TokenizedDataset, size: int) -> np.ndarray:
    order = np.argsort(rows.lengths, kind="stable")
    return order[((np.arange(size) + 0.5) / size * len(order)).astype(int)]
