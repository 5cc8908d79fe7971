"""The student of XtremeDistil: a bidirectional LSTM over the teacher's tokens, as a transformers model.

Mukherjee and Awadallah 2020, XtremeDistil (ACL, arXiv 2004.05686, section 3) and 2019, arXiv 1910.01769: token embeddings, one
BiLSTM, a dense layer to the teacher's width with GELU, and a linear head on it, as in the official code (the papers' equations put
the head on the BiLSTM). The tokenizer is the teacher's. The embedding has rows for the tokens seen in training only: `rows` maps a
token to its row, and all other tokens share row 0. Ours: a pair may be read as two texts by the one BiLSTM, which the dense layer
gets as [u; v; |u - v|; u * v] (Tang et al. 2019, arXiv 1903.12136, section 3.1), and the activation may be another.

This file imports nothing of filbert: it is saved with the student, for `trust_remote_code=True`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "tanh": torch.tanh, "identity": nn.Identity()}


class BiLstmConfig(PreTrainedConfig):
    """Sizes of a BiLSTM student."""

    model_type = "filbert_bilstm"

    vocab_size: int = 2  # of the tokenizer
    kept_vocab_size: int = 2  # rows of the embedding; row 0 is shared by all tokens that have none of their own
    embedding_size: int = 300
    lstm_size: int = 600  # of one direction
    hidden_size: int = 768  # of the dense layer: the teacher's width
    num_hidden_layers: int = 1
    pooling: str = "last"  # or max, over time
    dropout: float = 0.2
    activation: str = "gelu"  # of the dense layer; or tanh, identity
    pairs: str = "joint"  # a pair is one stream of tokens; or siamese: two texts, parted after the first separator
    sep_token_id: int | None = None


class BiLstmForSequenceClassification(PreTrainedModel):
    """The classifier; the input of its head has the teacher's width."""

    config_class = BiLstmConfig
    base_model_prefix = "encoder"

    def __init__(self, config: BiLstmConfig):
        super().__init__(config)
        self.embedding = nn.Embedding(config.kept_vocab_size, config.embedding_size)
        self.rows: Tensor
        self.register_buffer("rows", torch.zeros(config.vocab_size, dtype=torch.int32))
        self.lstm = nn.LSTM(config.embedding_size, config.lstm_size, batch_first=True, bidirectional=True)
        texts = 4 if config.pairs == "siamese" else 1
        self.dense = nn.Linear(2 * texts * config.lstm_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 1)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object) -> SequenceClassifierOutput:
        """Logits [B, C] and, as the only hidden state, the input of the head [B, D], from token ids and mask [B, T]."""
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        siamese = self.config.pairs == "siamese"
        ids, mask = split_pairs(input_ids, mask, self.config.sep_token_id) if siamese else (input_ids, mask)
        read = self._pool(*self._states(self.dropout(self.embedding(self.rows[ids])), mask), mask)
        if siamese:
            u, v = read.chunk(2)
            read = torch.cat([u, v, (u - v).abs(), u * v], dim=1)
        hidden = ACTIVATIONS[self.config.activation](self.dense(self.dropout(read)))
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(hidden)), hidden_states=(hidden,))

    def _states(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The states [B, T, H] of each direction in the order in which it reads a row; those of padding mean nothing.

        Rows are not packed, because oneDNN's LSTM takes padded ones only; padding, read last, reaches no real token.
        """
        zero = x.new_zeros(1, len(x), self.config.lstm_size)
        forward, backward = (
            torch.lstm(read, (zero, zero), tuple(weights), True, 1, 0.0, self.training, False, True)[0]
            for read, weights in zip((x, reverse(x, mask)), self.lstm.all_weights, strict=True)
        )
        return forward, backward

    def _pool(self, forward: Tensor, backward: Tensor, mask: Tensor) -> Tensor:
        """The input of the dense layer: the last states of both directions, or each unit's maximum over real tokens."""
        states = torch.cat([forward, backward], dim=-1)
        if self.config.pooling == "last":
            return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        return states.masked_fill(~mask[:, :, None], -torch.inf).amax(1)


class BiLstmForTokenClassification(BiLstmForSequenceClassification):
    """The same with a head on every token: logits [B, T, C], hidden state [B, T, D]."""

    def _pool(self, forward: Tensor, backward: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([forward, reverse(backward, mask)], dim=-1)


def reverse(x: Tensor, mask: Tensor) -> Tensor:
    """Each row of [B, T, D] in reverse within its own length; padding stays where it is."""
    place = torch.arange(x.shape[1], device=x.device)
    at = torch.where(mask, mask.sum(1, keepdim=True) - 1 - place, place)
    return x.gather(1, at[:, :, None].expand_as(x))


def split_pairs(ids: Tensor, mask: Tensor, separator: int) -> tuple[Tensor, Tensor]:
    """The texts of pairs as rows of their own, [2B, T']: first all texts up to the first separator, then all that follow it."""
    found = (ids == separator).long()
    first = ((found.cumsum(1) == found) & mask).sum(1)  # no separator before it
    start = torch.cat([torch.zeros_like(first), first])
    length = torch.cat([first, mask.sum(1) - first]).clamp(min=1)
    column = torch.arange(int(length.max()), device=ids.device)
    at = (start[:, None] + column).clamp(max=ids.shape[1] - 1)
    return ids.repeat(2, 1).gather(1, at), column < length[:, None]
