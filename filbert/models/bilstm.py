"""The student of XtremeDistil: a bidirectional LSTM over the teacher's tokens, as a transformers model.

Mukherjee and Awadallah 2020, XtremeDistil (ACL, arXiv 2004.05686, section 3) and 2019, arXiv 1910.01769: token embeddings, one
BiLSTM, a dense layer to the teacher's width with GELU, and a linear head on it, as in the official code (the papers' equations put
the head on the BiLSTM). The tokenizer is the teacher's. The embedding has rows for the tokens seen in training only: `rows` maps a
token to its row, and all other tokens share row 0.

This file imports nothing of filbert: it is saved with the student, for `trust_remote_code=True`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


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
        self.dense = nn.Linear(2 * config.lstm_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 1)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object) -> SequenceClassifierOutput:
        """Logits [B, C] and, as the only hidden state, the input of the head [B, D], from token ids and mask [B, T]."""
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        x = self.dropout(self.embedding(self.rows[input_ids]))
        packed = pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        states, (last, _) = self.lstm(packed)
        hidden = F.gelu(self.dense(self.dropout(self._pool(states, last, mask.shape[1]))))
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(hidden)), hidden_states=(hidden,))

    def _pool(self, states: PackedSequence, last: Tensor, length: int) -> Tensor:
        """The input of the dense layer: the last states of both directions, or each unit's maximum over real tokens."""
        if self.config.pooling == "last":
            return torch.cat([last[0], last[1]], dim=1)
        return pad_packed_sequence(states, batch_first=True, padding_value=-torch.inf)[0].amax(1)


class BiLstmForTokenClassification(BiLstmForSequenceClassification):
    """The same with a head on every token: logits [B, T, C], hidden state [B, T, D]."""

    def _pool(self, states: PackedSequence, last: Tensor, length: int) -> Tensor:
        return pad_packed_sequence(states, batch_first=True, total_length=length)[0]
