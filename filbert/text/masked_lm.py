"""A masked language model (Devlin et al. 2019, BERT, section 3.1): which words fit in a place; and the training of its head."""

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
from filbert.runtime.device import autocast
from filbert.tracking.recording import RunRecorder
from filbert.training.loop import TrainingConfig, fit

SHARE = 0.15  # of the tokens are guessed in training: 80 % of them masked, 10 % another token, 10 % as they are
HEADS = ("cls", "lm_head")  # a masked language model's head: BERT's, RoBERTa's name for it
BEGINS = "▁Ġ"  # how SentencePiece's and GPT-2's vocabularies mark a token that begins a word


class MaskedCopy(NamedTuple):
    """A text to be asked about."""

    masked: str  # the text with masks
    plain: str  # the text
    masks: int


@dataclass(frozen=True)
class Vocabulary:
    """What must be known of one to hide its tokens."""

    size: int
    mask: int
    special: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Vocabulary":
        return cls(len(tokenizer), tokenizer.mask_token_id, tuple(tokenizer.all_special_ids))


def mask_tokens(batch: Batch, vocabularies: Sequence[Vocabulary]) -> tuple[Tensor, Tensor]:
    """Hide a share of the words, whole where it is known which token begins one, else of the tokens; one of each row at least.

    Returns:
        ids [B, T] of which 80 % are masked, 10 % another token, 10 % as they were; and which are to be told, [B, T] bool. A token
        of the second vocabulary, numbered after the first's, has that one's mask and is replaced by a token of its own.
    """
    ids, offset, masks, others = batch.ids, 0, torch.empty_like(batch.ids), torch.empty_like(batch.ids)
    open_to = batch.mask.clone()
    for each in vocabularies:
        of_it = (ids >= offset) & (ids < offset + each.size)
        masks = torch.where(of_it, offset + each.mask, masks)
        others = torch.where(of_it, offset + torch.randint_like(ids, each.size), others)
        open_to &= ~torch.isin(ids, torch.tensor(each.special, device=ids.device) + offset)
        offset += each.size
    drawn, kind = torch.rand(2, *ids.shape, device=ids.device)
    if batch.word is not None:
        number = (batch.word >= 0).cumsum(1)
        drawn, kind = drawn.gather(1, number), kind.gather(1, number)
    least = drawn.masked_fill(~open_to, 1).amin(1, keepdim=True).clamp_min(SHARE)
    at = open_to & (drawn <= least)
    ids = torch.where(at & (kind < 0.8), masks, ids)
    return torch.where(at & (kind >= 0.9), others, ids), at


class MaskedLanguageModel:
    """A masked language model that says which words fit."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device):
        """Take any masked language model that transformers knows.

        Raises:
            FilbertError: its head has none of the names we know.
        """
        self.model, self.tokenizer, self.device = torch.nn.Module.to(model, device).eval(), tokenizer, device
        self.vocabulary = Vocabulary.of(tokenizer)
        self.head = next((getattr(model, name) for name in HEADS if hasattr(model, name)), None)
        if self.head is None:
            raise FilbertError(f"{type(model).__name__}: expected a head called {' or '.join(HEADS)}")
        tokens = tokenizer.convert_ids_to_tokens(list(range(model.config.vocab_size)))
        marked = sum(token.startswith(tuple(BEGINS)) for token in tokens if token) > len(tokens) / 10
        self.spelled = [
            self._spelled(token) if token and (not marked or token[0] in BEGINS) else "" for token in tokens
        ]
        self.words = torch.tensor([word.isalpha() for word in self.spelled], device=device)  # of the vocabulary

    def is_single_token(self, text: str, spans: list[tuple[int, int]]) -> list[bool]:
        """Which parts of a text are one token each."""
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        whole = {(start + (text[start : start + 1] == " "), end) for start, end in found}
        return [span in whole for span in spans]

    def _spelled(self, token: str) -> str:
        """A token as text: byte-level vocabularies spell their letters otherwise."""
        return self.tokenizer.convert_tokens_to_string([token]).strip() if token[0] in BEGINS else token

    def predict_words(self, copies: list[MaskedCopy], count: int, size: int) -> list[list[list[str]]]:
        """The `count` likeliest words at each mask of each copy, `size` copies in a forward pass; none at a mask that was
        cut off with the end of a long text."""
        found: list[list[list[str]]] = [[[]] * copy.masks for copy in copies]
        order = sorted(range(len(copies)), key=lambda i: len(copies[i].plain))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            for i, words in zip(part, self._ask([copies[i] for i in part], count), strict=True):
                found[i][: len(words)] = words
        return found

    @torch.inference_mode()
    def _ask(self, copies: list[MaskedCopy], count: int) -> list[list[list[str]]]:
        tokens = self.tokenizer(
            [copy.masked for copy in copies], [copy.plain for copy in copies], truncation=True, padding=True,
            max_length=self.model.config.max_position_embeddings - 2, return_token_type_ids=True, return_tensors="pt",
        )  # fmt: skip
        ids, types = tokens["input_ids"].to(self.device), tokens["token_type_ids"].to(self.device)
        at = ids == self.tokenizer.mask_token_id
        with autocast(self.device):
            logits = self._guess(Batch(ids, types, tokens["attention_mask"].bool().to(self.device), ids), at).float()
        best = logits.masked_fill(~self.words, -torch.inf).topk(count).indices.tolist()
        words = iter([[self.spelled[i] for i in row] for row in best])
        return [list(islice(words, masks)) for masks in at.sum(1).tolist()]

    def _guess(self, batch: Batch, at: Tensor) -> Tensor:
        """Logits [M, V] of the tokens at the places `at` [B, T] bool."""
        typed = {"token_type_ids": batch.types} if getattr(self.model.config, "type_vocab_size", 0) > 1 else {}
        states = self.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, **typed).last_hidden_state
        return self.head(states[at])  # type: ignore[misc]

    def loss(self, batch: Batch) -> Tensor:
        """The mean cross entropy of the tokens that were hidden; `hide` draws them anew."""
        ids, at = mask_tokens(batch, [self.vocabulary])
        return F.cross_entropy(self._guess(replace(batch, ids=ids), at).float(), batch.ids[at])

    def learn(
        self, rows: TokenizedDataset, config: TrainingConfig, seed: int, scratch: Path, recorder: RunRecorder
    ) -> None:
        """Train the whole model on rows of text, so that a fresh head comes to fit its encoder."""
        fit(
            self.model, self.loss, rows, dict, replace(config, validations=0), phase="masked", seed=seed, device=self.device,
            scratch=scratch, recorder=recorder,
        )  # fmt: skip
        self.model.eval()


def load_masked_lm(folder: Path, device: torch.device) -> MaskedLanguageModel:
    """The masked language model of a folder; a head that the checkpoint lacks is fresh, to be trained."""
    return MaskedLanguageModel(
        AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32), load_tokenizer(folder), device
    )
