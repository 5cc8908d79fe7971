"""Mixed-vocabulary training (Zhao, Gupta, Song, Zhou 2021, EACL, arXiv 1909.11687, second version): embeddings of a small
vocabulary are aligned with a teacher's.

Stage I: each word is cut by the student's vocabulary or by the teacher's at random; a student token enters the teacher through a
trained affine map of its small embedding; masked words are told by a softmax over the vocabulary they were cut by. Teacher, map
and small embeddings are all trained, the small embeddings alone are kept. Stage II (pretraining.py): a student of their width
starts from them and learns to tell masked words of its own vocabulary. Structure verified, details our reconstruction: p = 0.5,
the tied output E_S P + b, the special tokens' draw, whole words masked, no next-sentence prediction. Ours: the small embeddings may
start from what the teacher's table has for their tokens, where the paper's start at random.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from filbert.data.batches import Batch
from filbert.text.masked_lm import Vocabulary, mask_tokens


class MixedVocabularyModel(nn.Module):
    """A masked language model that reads tokens of two vocabularies, the second's numbered after the first's."""

    def __init__(self, teacher: PreTrainedModel, vocabularies: tuple[Vocabulary, Vocabulary], width: int):
        """Add to `teacher`, a BERT with its masked-language-model head, small embeddings [V_S, width] and the map up."""
        super().__init__()
        self.teacher, self.vocabularies = teacher, vocabularies
        second = vocabularies[1]
        self.small = nn.Embedding(second.size, width)
        nn.init.normal_(self.small.weight, std=teacher.config.initializer_range)
        self.up = nn.Linear(width, teacher.config.hidden_size)
        self.bias = nn.Parameter(torch.zeros(second.size))

    def start_at(self, small: Tensor, table: Tensor) -> None:
        """Start the small embeddings as `small` [V_S, width], and the map up as what brings them nearest to `table` [V_S, D], what
        the teacher's embeddings have for their tokens."""
        known = torch.cat([small, torch.ones(len(small), 1)], dim=1)
        back = torch.linalg.lstsq(known, table, driver="gelsd").solution  # [width + 1, D]
        with torch.no_grad():
            self.small.weight.copy_(small)
            self.up.weight.copy_(back[:-1].T)
            self.up.bias.copy_(back[-1])

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The last states [B, T, D] of ids and mask [B, T]."""
        first = self.vocabularies[0].size
        table = self.teacher.get_input_embeddings()
        theirs = table(ids.clamp_max(first - 1))
        ours = self.up(self.small((ids - first).clamp_min(0)))
        x = torch.where((ids >= first)[..., None], ours, theirs.to(ours.dtype))
        return self.teacher.base_model(inputs_embeds=x, attention_mask=mask).last_hidden_state

    def loss(self, batch: Batch) -> Tensor:
        """The mean over masked tokens of the cross entropy, each over its own vocabulary."""
        first = self.vocabularies[0].size
        ids, at = mask_tokens(batch, self.vocabularies)
        model: Any = self.teacher
        head = model.cls.predictions
        read, truth = head.transform(self(ids, batch.mask)[at]), batch.ids[at]
        of_second = truth >= first
        theirs = head.decoder(read[~of_second])
        ours = F.linear(read[of_second], self.up(self.small.weight), self.bias)
        total = F.cross_entropy(theirs.float(), truth[~of_second], reduction="sum") + F.cross_entropy(
            ours.float(), truth[of_second] - first, reduction="sum"
        )
        return total / at.sum()
