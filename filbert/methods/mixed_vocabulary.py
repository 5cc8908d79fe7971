"""Mixed-vocabulary training (Zhao, Gupta, Song, Zhou 2021, EACL, arXiv 1909.11687, second version): a small-vocabulary student.

Stage I aligns embeddings: each word is tokenised by the student's vocabulary or by the teacher's at random; a student token
enters the teacher through a trained affine map of its small embedding; masked words are predicted by a softmax over the
vocabulary that tokenised them. Teacher, map and small embeddings are all trained; the small embeddings alone are kept. Stage
II: a student of their width starts from them and is pretrained by masked language modelling on its own vocabulary alone. The
student is a plain BERT with its own WordPiece tokenizer, for any task: a `start` of a variant.

Structure verified; our reconstruction: p = 0.5, the tied output E_S P + b, special tokens drawn from either vocabulary, whole
words masked, no next-sentence prediction. Ours: small embeddings, or embeddings and body, may start from the checkpoint
(`start: svd`, `subclone`), where the paper's start at random; and where the checkpoint has no head for masked words, one is
trained first on its frozen body (`head`), or stage I had nothing to pass on. Without stage I, or with p = 0 or 1, it is one of
the baselines.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from filbert.data.batches import Batch, TokenizedDataset
from filbert.models.loading import load_pretrained
from filbert.models.subcloning import SubcloneSelection, select_units, subclone
from filbert.models.svd import low_rank_factors
from filbert.runtime.config import Fraction, PositiveInt, Range
from filbert.runtime.device import seed_everything
from filbert.text.corpus import Corpus, WordTokens, pack_blocks
from filbert.text.masked_lm import MaskedLanguageModel, Vocabulary, mask_tokens
from filbert.text.vocabulary import new_vocabulary, translate_embeddings, vocabulary_overlap
from filbert.tracking.run_recorder import RunRecorder
from filbert.training.loop import TrainingConfig, fit, mean_loss

HELD_OUT = 100  # one text in so many measures the masked-language-model loss,
HELD_OUT_BLOCKS = 128  # by its first blocks: some 2,500 masked tokens
RANKING_BLOCKS = 32  # at most so many blocks rank the checkpoint's units for subcloning


@dataclass(frozen=True)
class ShapeConfig:
    """The student's sizes; `subclone` needs heads of the checkpoint's size."""

    layers: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    intermediate: PositiveInt


@dataclass(frozen=True)
class PretrainConfig:
    """Epochs of both stages are counted in blocks of the student's vocabulary, so that they add up to a baseline's."""

    vocabulary_size: Annotated[int, Range(10)]  # tokens, special ones among them
    block_length: Annotated[int, Range(4)]  # tokens of a block
    shape: ShapeConfig
    start: Literal[
        "random", "svd", "subclone"
    ]  # the paper's; embeddings as an SVD of the checkpoint's; or embeddings and body as a
    # part of the checkpoint (models/subcloning.py)
    student_vocab_probability: Fraction  # p: of tokenising a word by the student's vocabulary in stage I
    head: TrainingConfig | None  # the checkpoint's masked-language-model head, its body frozen; none: it has one
    align: TrainingConfig | None  # stage I; or none
    freeze_embeddings: bool  # whether stage II keeps the embeddings as they are
    training: TrainingConfig  # stage II


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
        """Initialise the small embeddings as `small` [V_S, width], and the map up as the least-squares map from them to `table`
        [V_S, D], the teacher's embeddings of the same tokens."""
        known = torch.cat([small, torch.ones(len(small), 1)], dim=1)
        back = torch.linalg.lstsq(known, table, driver="gelsd").solution  # [width + 1, D]
        with torch.no_grad():
            self.small.weight.copy_(small)
            self.up.weight.copy_(back[:-1].T)
            self.up.bias.copy_(back[-1])

    def start_bias(self, teacher: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> None:
        """Initialise the small vocabulary's output bias [V_S] as that which the teacher's head has for the same tokens."""
        model: Any = self.teacher
        bias = model.cls.predictions.bias.detach().cpu()
        with torch.no_grad():
            self.bias.copy_(translate_embeddings(tokenizer, teacher, bias[:, None])[:, 0])

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


def pretrain(
    corpus: Corpus, checkpoint: Path, teacher: PreTrainedTokenizerBase, config: PretrainConfig, seed: int, device: torch.device,
    scratch: Path, recorder: RunRecorder,
) -> tuple[BertForMaskedLM, PreTrainedTokenizerFast]:  # fmt: skip
    """Stage I on the body of `checkpoint`, then stage II; returns the student and its tokenizer."""
    held_out = _held_out(corpus)
    train, judge = corpus.select(~held_out), corpus.select(held_out)
    tokenizer = new_vocabulary(train, config.vocabulary_size, teacher, config.block_length)
    recorder.metrics({"vocabulary": {"tokens": len(tokenizer), "in_teachers": vocabulary_overlap(tokenizer, teacher)}})
    ours, theirs = WordTokens(corpus.words, tokenizer), WordTokens(corpus.words, teacher)

    def blocks(texts: Corpus, *vocabularies: WordTokens) -> TokenizedDataset:
        return pack_blocks(texts, [*vocabularies], config.student_vocab_probability, config.block_length, seed)

    own, own_held = blocks(train, ours), _first(blocks(judge, ours))
    mixed, part = None, None
    if config.align or config.start != "random":
        seed_everything(seed)
        whole = blocks(train, theirs)
        sample = whole.batch(np.arange(len(whole))[:: len(whole) // RANKING_BLOCKS + 1])
        mixed, part = new_mixed(checkpoint, teacher, tokenizer, config, sample)
        if config.head and (config.align or part):
            masked = MaskedLanguageModel(mixed.teacher, teacher, device)
            steps = _per_block(config.head, own, whole)
            masked.train_head(whole, steps, seed, scratch, recorder, "head", frozen_body=True)
            mixed.start_bias(teacher, tokenizer)
    if mixed and config.align:
        rows, held = blocks(train, theirs, ours), _first(blocks(judge, theirs, ours))
        steps = _per_block(config.align, own, rows)
        _fit(mixed, mixed.loss, rows, held, steps, "align", seed, device, scratch, recorder)
    seed_everything(seed)
    student = new_student(tokenizer, config.shape, mixed, part)
    student.bert.embeddings.word_embeddings.requires_grad_(not config.freeze_embeddings)
    masked = MaskedLanguageModel(student, tokenizer, device)
    _fit(student, masked.loss, own, own_held, config.training, "pretrain", seed, device, scratch, recorder)
    return student, tokenizer


def _first(rows: TokenizedDataset) -> TokenizedDataset:
    return rows.select(np.arange(min(len(rows), HELD_OUT_BLOCKS)))


def _per_block(config: TrainingConfig, own: TokenizedDataset, rows: TokenizedDataset) -> TrainingConfig:
    """A phase on `rows` whose epochs are counted in the blocks of the student's vocabulary."""
    return replace(config, epochs=config.epochs * len(own) / len(rows))


def _held_out(corpus: Corpus) -> np.ndarray:
    return np.arange(len(corpus.ends)) % HELD_OUT == 0


def new_mixed(
    checkpoint: Path, teacher: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, config: PretrainConfig, sample: Batch
) -> tuple[MixedVocabularyModel, SubcloneSelection | None]:  # fmt: skip
    """The checkpoint as stage I trains it, its small embeddings initialised; and, for `subclone`, the units of it that the student
    keeps, ranked by their activations on `sample`."""
    model = load_pretrained(AutoModelForMaskedLM, checkpoint, fresh_head=True)
    shape, vocabularies = config.shape, (Vocabulary.of(teacher), Vocabulary.of(tokenizer))
    mixed = MixedVocabularyModel(model, vocabularies, shape.width)
    table = translate_embeddings(tokenizer, teacher, model.get_input_embeddings().weight.detach())  # type: ignore[operator]
    if config.start == "subclone":
        part = select_units(model, shape.layers, shape.width, shape.heads, shape.intermediate, sample)
        mixed.start_at(table[:, part.states], table)
        return mixed, part
    if config.start == "svd":
        mixed.start_at(low_rank_factors(table, shape.width)[0], table)
    return mixed, None


def new_student(
    tokenizer: PreTrainedTokenizerBase,
    shape: ShapeConfig,
    mixed: MixedVocabularyModel | None = None,
    part: SubcloneSelection | None = None,
) -> BertForMaskedLM:
    """A plain BERT: with the small embeddings of `mixed`, if given, and those units of its teacher as its body; the rest is
    fresh."""
    if mixed and part:
        small, bias = mixed.small.weight.detach().cpu(), mixed.bias.detach().cpu()
        return subclone(mixed.teacher, part, small, bias, tokenizer.pad_token_id)
    student = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=shape.width, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            intermediate_size=shape.intermediate, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    if mixed:
        with torch.no_grad():
            student.bert.embeddings.word_embeddings.weight.copy_(mixed.small.weight.cpu())
    return student


def _fit(
    model: nn.Module, loss: Callable[[Batch], Tensor], rows: TokenizedDataset, held: TokenizedDataset, config: TrainingConfig,
    phase: str, seed: int, device: torch.device, scratch: Path, recorder: RunRecorder,
) -> None:  # fmt: skip
    """Train for one phase; the weights with the lowest loss on the held-out blocks are kept."""

    def scores() -> dict[str, float]:
        torch.manual_seed(seed)  # the same words are masked each time
        return {"loss": mean_loss(model, loss, held, device)}

    fit(model, loss, rows, scores, config, phase=phase, seed=seed, device=device, scratch=scratch, recorder=recorder)
