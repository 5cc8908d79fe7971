"""The encoder: a BERT whose every layer may have its own number of heads and its own feed-forward width.

Parameter names are Hugging Face's, so that checkpoints load and students save without a mapping. This file imports nothing of
filbert: it is saved with the students that plain `bert` cannot express, for `trust_remote_code=True`.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import SequenceClassifierOutput


class FilbertConfig(BertConfig):
    """BERT's configuration, and the sizes that may differ by layer. Without the extra fields it describes a plain BERT."""

    model_type = "filbert"

    head_size: int = 0  # width of one head; 0: hidden_size / num_attention_heads
    layer_heads: list[int] = field(default_factory=list)  # heads of each layer; none: num_attention_heads each
    layer_intermediate: list[int] = field(default_factory=list)  # feed-forward widths; none: intermediate_size each
    embedding_size: int = 0  # rank of the factorised word embedding; 0: not factorised

    def __post_init__(self, **kwargs):  # type: ignore[no-untyped-def]
        self.head_size = self.head_size or self.hidden_size // self.num_attention_heads
        self.layer_heads = self.layer_heads or [self.num_attention_heads] * self.num_hidden_layers
        self.layer_intermediate = self.layer_intermediate or [self.intermediate_size] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    @property
    def is_even(self) -> bool:
        """Whether all layers are as wide as a plain BERT's."""
        return (
            not self.embedding_size
            and self.head_size * self.num_attention_heads == self.hidden_size
            and self.layer_heads == [self.num_attention_heads] * self.num_hidden_layers
            and self.layer_intermediate == [self.intermediate_size] * self.num_hidden_layers
        )

    @property
    def is_plain(self) -> bool:
        """Whether `model_type: bert` can express this shape."""
        return self.is_even


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """Softmax(q kᵀ / √d + mask) v, heads joined: [B, heads, T, d] -> [B, T, heads * d]. `mask` is bool or added to the scores;
    attention weights are dropped with the probability `dropout`."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout).transpose(1, 2).flatten(2)


class Embeddings(nn.Module):
    """Word (possibly factorised), position and token type embeddings, summed and normalised."""

    def __init__(self, config: FilbertConfig):
        super().__init__()
        rank = config.embedding_size or config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, rank, padding_idx=config.pad_token_id)
        self.word_projection = (
            nn.Linear(rank, config.hidden_size, bias=False) if config.embedding_size else nn.Identity()
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor, types: Tensor) -> Tensor:  # [B, T], [B, T] -> [B, T, D]
        positions = torch.arange(ids.shape[1], device=ids.device)
        words = self.word_projection(self.word_embeddings(ids))
        return self.dropout(
            self.LayerNorm(words + self.token_type_embeddings(types) + self.position_embeddings(positions))
        )


class SelfAttention(nn.Module):
    """Multi-head self-attention; the number of heads is the layer's own."""

    def __init__(self, config: FilbertConfig, heads: int):
        super().__init__()
        self.head_size = config.head_size
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, heads * config.head_size) for _ in range(3))
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, x: Tensor, mask: Tensor, first: bool = False) -> Tensor:
        """[B, T, D], [B, 1, 1, T] bool -> [B, T, heads * head_size]; or of the `first` token alone, [B, 1, …]."""
        parts = (self.query(x[:, :1] if first else x), self.key(x), self.value(x))
        q, k, v = (part.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for part in parts)
        return attend(q, k, v, mask, self.dropout if self.training else 0.0)


class Residual(nn.Module):
    """A projection to the model's width, added to the input of the block and normalised."""

    def __init__(self, config: FilbertConfig, width: int):
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, block_input: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + block_input)


class Layer(nn.Module):
    """A transformer layer: attention, then feed-forward."""

    def __init__(self, config: FilbertConfig, heads: int, width: int):
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(config, heads), "output": Residual(config, heads * config.head_size)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, width)})
        self.output = Residual(config, width)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor, mask: Tensor, first: bool = False) -> Tensor:
        """The next states [B, T, D]; or those of the `first` token alone, [B, 1, D]."""
        x = self.attention["output"](self.attention["self"](x, mask, first), x[:, :1] if first else x)
        return self.output(self.activation(self.intermediate["dense"](x)), x)


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: FilbertConfig):
        super().__init__()
        shapes = zip(config.layer_heads, config.layer_intermediate, strict=True)
        self.layer = nn.ModuleList(Layer(config, heads, width) for heads, width in shapes)

    def forward(self, x: Tensor, mask: Tensor, first: bool = False) -> tuple[Tensor, ...]:
        """L + 1 states of [B, T, D], x the first; with `first` the last are of the first token alone, [B, 1, D]."""
        states = [x]
        for number, layer in enumerate(self.layer, start=1):
            states.append(layer(states[-1], mask, first and number == len(self.layer)))
        return tuple(states)


class Bert(nn.Module):
    """Embeddings, encoder and (for sequence classification) pooler."""

    def __init__(self, config: FilbertConfig, pooled: bool = True):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size)}) if pooled else None

    def forward(
        self, ids: Tensor, types: Tensor, mask: Tensor, *reference: Tensor, first: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The pooled vector [B, D], or without a pooler the last states [B, T, D]; and the states after the embeddings and after
        each layer, L + 1 of [B, T, D]. `reference` is passed to encoders that read one. With `first` a last layer that is pooled
        is computed for the first token alone."""
        first = first and self.pooler is not None
        states = self.encoder(self.embeddings(ids, types), mask[:, None, None, :], *reference, first=first)
        if self.pooler is None:
            return states[-1], states
        return torch.tanh(self.pooler["dense"](states[-1][:, 0])), states


@dataclass
class PooledClassifierOutput(SequenceClassifierOutput):
    """The output of a classifier, and the vector that its head reads."""

    pooled: Tensor | None = None  # [B, D]; of a token classifier [B, T, D]


class FilbertForSequenceClassification(PreTrainedModel):
    """The encoder with a head for classification (with one label: regression) on the pooled first token."""

    config_class = FilbertConfig
    base_model_prefix = "bert"
    pooled = True

    def __init__(self, config: FilbertConfig):
        super().__init__(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.bert = Bert(config, self.pooled)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 1)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None,
        logits_alone: bool = False, **_: object,
    ) -> PooledClassifierOutput:  # fmt: skip
        """Logits [B, C], what they were computed of, and all hidden states, from token ids, mask and token types [B, T]; with
        `logits_alone` no states: the last layer is computed for the first token alone."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        pooled, states = self.bert(input_ids, types, mask.bool(), first=logits_alone)
        logits = self.classifier(self.dropout(pooled))
        return PooledClassifierOutput(logits=logits, hidden_states=None if logits_alone else states, pooled=pooled)


class FilbertForTokenClassification(FilbertForSequenceClassification):
    """The encoder with a head on each token's last state: logits [B, T, C]."""

    pooled = False
