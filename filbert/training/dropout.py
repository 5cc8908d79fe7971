"""Dropout of any model that trains on a CPU, ours or Hugging Face's, by a generator ten times as fast as torch's own.

Torch draws its masks number by number: 8 % of a teacher's step at 27 tokens, a fifth at 128. It also has no fused attention with
dropout on a CPU; that is written out here.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SHORT = 128  # tokens up to which attention that is written out is faster than torch's, forward and backward


def fast_dropout(device: torch.device, keep: bool = True) -> AbstractContextManager[Any]:
    """Draw the dropout of all that is called within by `dropout_mask`, where that is a CPU; or drop nothing (`keep` false)."""
    on_cpu = device.type == "cpu"
    attend = attention if on_cpu else F.scaled_dot_product_attention
    if not keep:
        return Replaced({F.dropout: _as_it_is, F.scaled_dot_product_attention: partial(_without_dropout, attend)})
    return Replaced({F.dropout: dropout, F.scaled_dot_product_attention: attend}) if on_cpu else nullcontext()


def _as_it_is(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return x


def _without_dropout(attend: Any, *args: Any, **kwargs: Any) -> Tensor:
    found: Tensor = attend(*args, **kwargs | {"dropout_p": 0.0})
    return found


class Replaced(TorchFunctionMode):
    """Calls some of torch's functions by others."""

    def __init__(self, functions: dict[Any, Any]):
        super().__init__()
        self.functions = functions

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.functions.get(function, function)(*args, **(kwargs or {}))


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As torch.nn.functional.dropout."""
    if not training or not p or p == 1:
        return F.dropout(x, p, training, inplace)
    mask = dropout_mask(x.shape, p, x.dtype)
    return x.mul_(mask) if inplace else x * mask


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, **more: Any
) -> Tensor:  # fmt: skip
    """As torch.nn.functional.scaled_dot_product_attention; of short rows and with dropout softmax(q kᵀ / √d + mask) v, its weights
    [B, heads, T, T] dropped. `attn_mask` is bool or added to the scores."""
    scale = more.pop("scale", None) or q.shape[-1] ** -0.5
    if (not dropout_p and k.shape[-2] > SHORT) or is_causal or any(more.values()):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, **more
        )
    scores = ((q * scale) @ k.transpose(-1, -2)).float()  # torch's softmax in bfloat16 takes four to ten times as long
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = scores.new_zeros(attn_mask.shape).masked_fill_(~attn_mask, -torch.inf)
    weights = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
    dropped = weights * dropout_mask(weights.shape, dropout_p, weights.dtype) if dropout_p else weights
    return dropped.to(v.dtype) @ v


def dropout_mask(shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
    """0 with the probability (to 1 / 65536), else 1 / (1 - probability), in a tensor of some shape; as torch's own masks a function
    of the state of torch's generator."""
    size, limit = math.prod(shape), round(65536 * probability)
    generator = np.random.SFC64(int(torch.randint(2**62, ())))
    bits = generator.random_raw((size + 3) // 4).view(np.int16)[:size]  # -32768 to 32767, evenly
    keep = (bits >= np.int16(limit - 32768)).view(np.int8)  # torch compares, and casts from bool, ten times as slowly
    return torch.from_numpy(keep).to(dtype).mul_(65536 / (65536 - limit)).view(shape)
