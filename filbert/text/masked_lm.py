"""A masked language model (Devlin et al. 2019, BERT, arXiv 1810.04805, section 3.1): predicts masked words; and its training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from filbert import FilbertError
from filbert.data.batches import Batch, TokenizedDataset, load_tokenizer
from filbert.models.loading import load_pretrained
from filbert.runtime.device import autocast
from filbert.tracking.run_recorder import RunRecorder
from filbert.training.loop import TrainingConfig, fit

MASKED = 0.15  # of the tokens are predicted in training: 80 % of them masked, 10 % another token, 10 % unchanged
HEADS = ("cls", "lm_head")  # attribute of the head in BERT's and in RoBERTa's models
BEGINS = "▁Ġ"  # the first character of a token that begins a word, in SentencePiece's and GPT-2's vocabularies


class MaskedCopy(NamedTuple):
    """A text some of whose words are masked."""

    masked: str  # the text with mask tokens
    plain: str  # the text without
    masks: int  # how many


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a vocabulary."""

    size: int
    mask: int  # id of the mask token
    special: tuple[int, ...]  # ids that are never masked

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Vocabulary":
        """The vocabulary of a tokenizer."""
        return cls(len(tokenizer), tokenizer.mask_token_id, tuple(tokenizer.all_special_ids))


def mask_tokens(batch: Batch, vocabularies: Sequence[Vocabulary]) -> tuple[Tensor, Tensor]:
    """Choose tokens to predict: whole words where `batch.word` says which token begins one, at least one in each row.

    Returns:
        ids [B, T], in which 80 % of the chosen tokens are masked, 10 % replaced by another token and 10 % unchanged; and the
        chosen ones, [B, T] bool. A token of the second vocabulary (its ids follow the first's) is replaced within its vocabulary.
    """
    ids, offset, masks, others = batch.ids, 0, torch.empty_like(batch.ids), torch.empty_like(batch.ids)
    candidates = batch.mask.clone()
    for each in vocabularies:
        inside = (ids >= offset) & (ids < offset + each.size)
        masks = torch.where(inside, offset + each.mask, masks)
        others = torch.where(inside, offset + torch.randint_like(ids, each.size), others)
        candidates &= ~torch.isin(ids, torch.tensor(each.special, device=ids.device) + offset)
        offset += each.size
    drawn, kind = torch.rand(2, *ids.shape, device=ids.device)
    if batch.word is not None:
        number = (batch.word >= 0).cumsum(1)
        drawn, kind = drawn.gather(1, number), kind.gather(1, number)
    least = drawn.masked_fill(~candidates, 1).amin(1, keepdim=True).clamp_min(MASKED)
    at = candidates & (drawn <= least)
    ids = torch.where(at & (kind < 0.8), masks, ids)
    return torch.where(at & (kind >= 0.9), others, ids), at


class MaskedLanguageModel:
    """A masked language model with its tokenizer."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device):
        """Take any masked language model that transformers can load.

        Raises:
            FilbertError: its head has none of the names in HEADS.
        """
        self.model, self.tokenizer, self.device = torch.nn.Module.to(model, device).eval(), tokenizer, device
        self.vocabulary = Vocabulary.of(tokenizer)
        self.head = next((getattr(model, name) for name in HEADS if hasattr(model, name)), None)
        if self.head is None:
            raise FilbertError(f"{type(model).__name__}: expected a head called {' or '.join(HEADS)}")
        tokens = tokenizer.convert_ids_to_tokens(list(range(model.config.vocab_size)))
        marked = sum(token.startswith(tuple(BEGINS)) for token in tokens if token) > len(tokens) / 10
        self.token_texts = [
            self._token_text(token) if token and (not marked or token[0] in BEGINS) else "" for token in tokens
        ]
        self.is_word = torch.tensor([word.isalpha() for word in self.token_texts], device=device)  # [V] bool

    def is_single_token(self, text: str, spans: list[tuple[int, int]]) -> list[bool]:
        """Whether each span of characters of a text is one token."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        whole = {(start + (text[start : start + 1] == " "), end) for start, end in found}
        return [span in whole for span in spans]

    def _token_text(self, token: str) -> str:
        """A token as text: byte-level vocabularies encode characters differently."""
        return self.tokenizer.convert_tokens_to_string([token]).strip() if token[0] in BEGINS else token

    def predict_words(self, copies: list[MaskedCopy], count: int, size: int) -> list[list[list[str]]]:
        """The `count` most probable words at each mask of each copy, `size` copies in a forward pass; none at a mask beyond
        the maximum length."""
        found: list[list[list[str]]] = [[[]] * copy.masks for copy in copies]
        order = sorted(range(len(copies)), key=lambda i: len(copies[i].plain))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            for i, words in zip(part, self._predict_batch([copies[i] for i in part], count), strict=True):
                found[i][: len(words)] = words
        return found

    @torch.inference_mode()
    def _predict_batch(self, copies: list[MaskedCopy], count: int) -> list[list[list[str]]]:
        tokens = self.tokenizer(
            [copy.masked for copy in copies], [copy.plain for copy in copies], truncation=True, padding=True,
            max_length=self.model.config.max_position_embeddings - 2, return_token_type_ids=True, return_tensors="pt",
        )  # fmt: skip
        ids, types = tokens["input_ids"].to(self.device), tokens["token_type_ids"].to(self.device)
        masked = ids == self.tokenizer.mask_token_id
        with autocast(self.device):
            logits = self._logits(
                Batch(ids, types, tokens["attention_mask"].bool().to(self.device), ids), masked
            ).float()
        best = logits.masked_fill(~self.is_word, -torch.inf).topk(count).indices.tolist()
        words = iter([[self.token_texts[i] for i in row] for row in best])
        return [list(islice(words, masks)) for masks in masked.sum(1).tolist()]

    def _logits(self, batch: Batch, at: Tensor) -> Tensor:
        """Logits [M, V] at the M positions where `at` [B, T] is true."""
        typed = {"token_type_ids": batch.types} if getattr(self.model.config, "type_vocab_size", 0) > 1 else {}
        states = self.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, **typed).last_hidden_state
        return self.head(states[at])  # type: ignore[misc]

    def loss(self, batch: Batch) -> Tensor:
        """The mean cross entropy of tokens that are chosen anew at each call."""
        ids, at = mask_tokens(batch, [self.vocabulary])
        return F.cross_entropy(self._logits(replace(batch, ids=ids), at).float(), batch.ids[at])

    def train_head(
        self, rows: TokenizedDataset, config: TrainingConfig, seed: int, scratch: Path, recorder: RunRecorder,
        phase: str = "masked", frozen_body: bool = False,
    ) -> None:  # fmt: skip
        """Train a newly initialised head on rows of text: with the whole model, or alone on a body that stays as it is."""
        body = self.model.base_model.requires_grad_(
            not frozen_body
        )  # with its embeddings, which the head's output is tied to
        fit(
            self.model, self.loss, rows, dict, replace(config, validations=0), phase=phase, seed=seed, device=self.device,
            scratch=scratch, recorder=recorder,
        )  # fmt: skip
        body.requires_grad_(True)
        self.model.eval()


def load_masked_lm(folder: Path, device: torch.device) -> MaskedLanguageModel:
    """The masked language model of a folder; a head that the checkpoint lacks is newly initialised."""
    return MaskedLanguageModel(
        load_pretrained(AutoModelForMaskedLM, folder, fresh_head=True), load_tokenizer(folder), device
    )
