"""A BERT whose first layer also attends to a reference: the teacher's outputs on a similar training row.

RefBERT (Wang, Yang, Zhao, Mo, Shen 2021, arXiv 2106.08898) changes the key and the value of the first layer's attention; its
formulae could not be read, so equations and normalisation here are our reconstruction. With x the embedding output [B, T, D], E
the teacher's embedding output of the reference and H its last hidden states [B, R, Dt]:

    r_k = norm(E P_k)    r_v = norm(H P_v)    Q = x W_Q    K = [x; r_k] W_K    V = [x; r_v] W_V
    softmax(Q Kᵀ / √d + [0; g + log(T / R)]) V

g is trained, one number per head: at equal scores the reference as a whole has e^g times the weight of the row itself, whatever
their lengths. Plain concatenation is g = log(R / T).

This file is saved with the student, with bert.py and reference_store.py, for `trust_remote_code=True`.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from .bert import Encoder, FilbertConfig, FilbertForSequenceClassification, Layer, SelfAttention, attend
from .reference_store import FOLDER, ReferenceStore

REFERENCE = ("reference_keys", "reference_values", "reference_mask")  # the inputs that hold a reference
GATE_SCALE = 100.0  # Adam changes a parameter by about the learning rate per step: too little for a logarithm of odds
NORMS = ("none", "reference", "joint", "statistics")


class ReferenceConfig(FilbertConfig):
    """The configuration of a student that reads references."""

    model_type = "filbert_reference"

    reference_size: int = 0  # the teacher's width
    reference_norm: str = "reference"  # one of NORMS
    reference_gate: float = 0.0  # initial g; the lower, the less a reference disturbs the first layer at first

    @property
    def is_plain(self) -> bool:
        return False


class Statistics(nn.Module):
    """Normalises references to the running mean and variance of the student's own vectors."""

    def __init__(self, size: int):
        super().__init__()
        self.theirs, self.ours = (nn.BatchNorm1d(size, affine=False) for _ in range(2))

    def forward(self, reference: Tensor, reference_mask: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        self.ours(x[mask].float())
        out = torch.zeros_like(reference)
        mean, variance = self.ours.get_buffer("running_mean"), self.ours.get_buffer("running_var")
        scaled = self.theirs(reference[reference_mask].float()) * variance.sqrt() + mean
        out[reference_mask] = scaled.to(out.dtype)
        return out


class ReferenceSelfAttention(SelfAttention):
    """The first layer's attention, over [the row ; the reference]."""

    def __init__(self, config: ReferenceConfig, heads: int):
        super().__init__(config, heads)
        width = config.hidden_size
        self.project = nn.ModuleDict({part: nn.Linear(config.reference_size, width) for part in ("key", "value")})
        self.norm_kind = config.reference_norm
        self.initial_gate = config.reference_gate
        self.gate = nn.Parameter(torch.zeros(heads))  # g is initial_gate + GATE_SCALE * gate
        self.norm = nn.ModuleDict({part: self._new_norm(config) for part in ("key", "value")})

    def _new_norm(self, config: ReferenceConfig) -> nn.Module:
        if self.norm_kind in ("none", "statistics"):
            return nn.Identity() if self.norm_kind == "none" else Statistics(config.hidden_size)
        return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor, keys: Tensor, values: Tensor, reference_mask: Tensor
    ) -> Tensor:
        """x [B, T, D], mask [B, 1, 1, T]; keys, values [B, R, Dt], reference_mask [B, R] -> [B, T, heads * head_size]."""
        own_mask = mask[:, 0, 0]
        joined = {
            "key": self._join("key", x, own_mask, keys, reference_mask),
            "value": self._join("value", x, own_mask, values, reference_mask),
        }
        q, k, v = (
            part.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for part in (self.query(x), self.key(joined["key"]), self.value(joined["value"]))
        )
        both = torch.cat([own_mask, reference_mask], dim=1)[:, None, None, :]
        log_ratio = torch.log(own_mask.sum(1) / reference_mask.sum(1).clamp(min=1))[:, None]  # log(T / R), [B, 1]
        gate = self.initial_gate + GATE_SCALE * self.gate + log_ratio  # [B, h]
        gates = F.pad(gate[..., None].expand(-1, -1, reference_mask.shape[1]), (own_mask.shape[1], 0))[
            :, :, None, :
        ]  # [B, h, 1, T + R]
        bias = gates.to(q.dtype).masked_fill(~both, -torch.inf)
        return attend(q, k, v, bias, self.dropout if self.training else 0.0)

    def _join(self, part: str, x: Tensor, mask: Tensor, reference: Tensor, reference_mask: Tensor) -> Tensor:
        """The row's vectors [B, T, D] and the projected, normalised reference: [B, T + R, D]."""
        projected = self.project[part](reference.to(x.dtype))
        if self.norm_kind == "joint":
            return self.norm[part](torch.cat([x, projected], dim=1))
        if self.norm_kind == "statistics":
            return torch.cat([x, self.norm[part](projected, reference_mask, x, mask)], dim=1)
        return torch.cat([x, self.norm[part](projected)], dim=1)


class ReferenceLayer(Layer):
    """A layer that also attends to the reference."""

    def __init__(self, config: ReferenceConfig, heads: int, width: int):
        super().__init__(config, heads, width)
        self.attention["self"] = ReferenceSelfAttention(config, heads)

    def forward(self, x: Tensor, mask: Tensor, *reference: Tensor) -> Tensor:  # type: ignore[override]
        x = self.attention["output"](self.attention["self"](x, mask, *reference), x)
        return self.output(self.activation(self.intermediate["dense"](x)), x)


class ReferenceEncoder(Encoder):
    """An encoder whose first layer also attends to the reference."""

    def __init__(self, config: ReferenceConfig):
        super().__init__(config)
        self.layer[0] = ReferenceLayer(config, config.layer_heads[0], config.layer_intermediate[0])

    def forward(self, x: Tensor, mask: Tensor, *reference: Tensor, first: bool = False) -> tuple[Tensor, ...]:  # type: ignore[override]
        states = [x, self.layer[0](x, mask, *reference)]
        for number, layer in enumerate(self.layer[1:], start=2):
            states.append(layer(states[-1], mask, first and number == len(self.layer)))
        return tuple(states)


class ReferenceForSequenceClassification(FilbertForSequenceClassification):
    """The classifier; inputs without a reference get theirs from the store in the model's folder."""

    config_class = ReferenceConfig

    def __init__(self, config: ReferenceConfig):
        super().__init__(config)
        self.bert.encoder = ReferenceEncoder(config)
        self.store: ReferenceStore | None = None
        name = str(self.name_or_path or "")
        self.origin = (
            str(Path(name).absolute()) if name and Path(name).is_dir() else name
        )  # a folder, or a name on the hub
        self.post_init()

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        reference_keys: Tensor | None = None,
        reference_values: Tensor | None = None,
        reference_mask: Tensor | None = None,
        logits_alone: bool = False,
        **_: object,
    ) -> SequenceClassifierOutput:
        """Logits [B, C] and all hidden states, from token ids, mask and token types [B, T], and the teacher's outputs on the
        references: keys and values [B, R, Dt], mask [B, R]."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        if reference_keys is None or reference_values is None or reference_mask is None:
            reference_keys, reference_values, reference_mask = self.references(input_ids, mask)
        reference = (reference_keys, reference_values, reference_mask)
        pooled, states = self.bert(input_ids, types, mask.bool(), *reference, first=logits_alone)
        logits = self.classifier(self.dropout(pooled))
        return SequenceClassifierOutput(logits=logits, hidden_states=None if logits_alone else states)

    @property
    def projections(self) -> list[nn.Linear]:
        """The projections P_k and P_v."""
        project: Any = self.get_submodule("bert.encoder.layer.0.attention.self.project")
        return [project["key"], project["value"]]

    def references(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and mask of these inputs' references, from the store, which is opened when first needed.

        Raises:
            FileNotFoundError: there is no store in the model's folder.
        """
        self.store = self.store or ReferenceStore(self._folder())
        return self.store(ids, mask)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers, and the store, too."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if self.store is None and self.origin and self._folder().exists():
            self.store = ReferenceStore(self._folder())
        if self.store is not None:
            self.store.copy_to(Path(save_directory) / FOLDER)

    def _folder(self) -> Path:
        """The folder of the store: beside the weights, in a folder or on the hub."""
        if self.origin and not Path(self.origin).is_absolute():
            revision = getattr(self.config, "_commit_hash", None)
            return Path(snapshot_download(self.origin, revision=revision, allow_patterns=f"{FOLDER}/*")) / FOLDER
        return Path(self.origin or "a student that was never saved") / FOLDER
