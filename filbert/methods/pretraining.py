"""A task-agnostic student with a small vocabulary, pretrained once: stages I and II of mixed-vocabulary training (mixed.py).

The student is a plain BERT with its own WordPiece tokenizer. Without stage I, or with a share of 0 or 1, it is one of the
baselines.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from filbert.data.batches import Batch, TokenizedDataset
from filbert.methods.mixed import MixedVocabularyModel
from filbert.models.subcloning import SubcloneSelection, select_units, subclone
from filbert.models.svd import low_rank_factors
from filbert.runtime.device import seed_everything
from filbert.text.corpus import Corpus, WordTokens, pack_blocks, wordpiece_backend
from filbert.text.masked_lm import MaskedLanguageModel, Vocabulary
from filbert.tracking.recording import RunRecorder
from filbert.training.loop import TrainingConfig, fit, mean_loss

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ALPHABET = 500  # letters that a vocabulary may have
HELD_OUT = 100  # one text in so many tells how well masked words are told
RANKED = 32  # blocks that tell what is strongest in the checkpoint


@dataclass(frozen=True)
class ShapeConfig:
    """The student's sizes; heads are of 64 numbers in BERT, as many as divide the width."""

    layers: int
    width: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class PretrainConfig:
    """Epochs of both stages are counted in blocks of the student's vocabulary, so that they add up to a baseline's."""

    vocabulary: int  # tokens, special ones among them
    length: int  # tokens of a block
    shape: ShapeConfig
    start: Literal["random", "svd", "subclone"]  # the paper's; the small embeddings as the strongest directions of the
    # checkpoint's; or these and the body as a part of the checkpoint (subclone.py)
    share: float  # of the words that stage I cuts by the student's vocabulary (the paper's p)
    align: TrainingConfig | None  # stage I; or none
    freeze: bool  # whether stage II keeps the embeddings as they are
    fit: TrainingConfig  # stage II


def new_vocabulary(corpus: Corpus, size: int, teacher: PreTrainedTokenizerBase, length: int) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of `size` tokens trained on a corpus; it normalises and splits into words as the teacher's does."""
    theirs = teacher.backend_tokenizer
    counts = np.bincount(corpus.text, minlength=len(corpus.words)) if len(corpus) else np.zeros(0, int)
    names = [
        *SPECIAL.values(),
        *_continuing(corpus.words, counts),
    ]  # named first, for the trainer numbers these at random
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=names, limit_alphabet=ALPHABET, show_progress=False
    )
    trained.train_from_iterator(_repeated(corpus.words, counts), trainer)
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer = theirs.normalizer or normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ids = {name: tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=list(ids.items())
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **SPECIAL)


def _continuing(words: list[str], counts: np.ndarray) -> list[str]:
    """The most frequent letters that go on a word, as tokens."""
    found: Counter[str] = Counter()
    for word, count in zip(words, counts.tolist(), strict=True):
        for letter in word[1:]:
            found[letter] += count
    ordered = sorted(found, key=lambda letter: (-found[letter], letter))
    return [f"##{letter}" for letter in ordered[:ALPHABET] if found[letter]]


def _repeated(words: list[str], counts: np.ndarray) -> Iterator[str]:
    """Each word as often as it occurs, some at a time: what the trainer counts again."""
    for word, count in zip(words, counts.tolist(), strict=True):
        for start in range(0, count, 1000):
            yield " ".join([word] * min(1000, count - start))


def vocabulary_overlap(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> float:
    """The share of a vocabulary's tokens that another has too."""
    mine = set(ours.get_vocab())
    return len(mine & set(theirs.get_vocab())) / len(mine)


def translate_embeddings(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase, table: Tensor) -> Tensor:
    """What a table [V_T, D] has for each token of another vocabulary, [V_S, D]: the embedding of the same token, or the mean of
    those that it is cut into."""
    known, cut = theirs.get_vocab(), wordpiece_backend(theirs).model
    special = {token: getattr(theirs, name) for name, token in SPECIAL.items()}
    tokens = (special.get(token, token) for token in ours.convert_ids_to_tokens(list(range(len(ours)))))
    ids = ([known[p]] if p in known else [token.id for token in cut.tokenize(p.removeprefix("##"))] for p in tokens)
    return torch.stack([table[some].mean(0) for some in ids])


def pretrain(
    corpus: Corpus, checkpoint: Path, teacher: PreTrainedTokenizerBase, config: PretrainConfig, seed: int, device: torch.device,
    scratch: Path, recorder: RunRecorder,
) -> tuple[BertForMaskedLM, PreTrainedTokenizerFast]:  # fmt: skip
    """Align embeddings with those of `checkpoint`, then pretrain a student from them; the student and its tokenizer."""
    held_out = _one_in_so_many(corpus)
    learnt, judged = corpus.only(~held_out), corpus.only(held_out)
    tokenizer = new_vocabulary(learnt, config.vocabulary, teacher, config.length)
    recorder.metrics({"vocabulary": {"tokens": len(tokenizer), "in_teachers": vocabulary_overlap(tokenizer, teacher)}})
    ours, theirs = WordTokens(corpus.words, tokenizer), WordTokens(corpus.words, teacher)
    own, own_held = (pack_blocks(texts, [ours], 0.0, config.length, seed) for texts in (learnt, judged))
    mixed, part = None, None
    if config.align or config.start != "random":
        seed_everything(seed)
        some = pack_blocks(learnt.only(_one_in_so_many(learnt)), [theirs], 0.0, config.length, seed)
        mixed, part = new_mixed(checkpoint, teacher, tokenizer, config, some.batch(np.arange(len(some))[:RANKED]))
    if mixed and config.align:
        rows, held = (
            pack_blocks(texts, [theirs, ours], config.share, config.length, seed) for texts in (learnt, judged)
        )
        steps = replace(config.align, epochs=config.align.epochs * len(own) / len(rows))
        _fit(mixed, mixed.loss, rows, held, steps, "align", seed, device, scratch, recorder)
    seed_everything(seed)
    student = new_student(tokenizer, config.shape, mixed, part)
    student.bert.embeddings.word_embeddings.requires_grad_(not config.freeze)
    masked = MaskedLanguageModel(student, tokenizer, device)
    _fit(student, masked.loss, own, own_held, config.fit, "pretrain", seed, device, scratch, recorder)
    return student, tokenizer


def _one_in_so_many(corpus: Corpus) -> np.ndarray:
    return np.arange(len(corpus.ends)) % HELD_OUT == 0


def new_mixed(
    checkpoint: Path, teacher: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, config: PretrainConfig, some: Batch
) -> tuple[MixedVocabularyModel, SubcloneSelection | None]:  # fmt: skip
    """The checkpoint as stage I trains it, its small embeddings started, and the part of it that the student is to be, if it is
    one, told by what it says to `some` text."""
    model = AutoModelForMaskedLM.from_pretrained(checkpoint, dtype=torch.float32)
    mixed, shape = (
        MixedVocabularyModel(model, (Vocabulary.of(teacher), Vocabulary.of(tokenizer)), config.shape.width),
        config.shape,
    )
    table = translate_embeddings(tokenizer, teacher, model.get_input_embeddings().weight.detach())
    if config.start == "subclone":
        part = select_units(model, shape.layers, shape.width, shape.heads, shape.intermediate, some)
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
    """A plain BERT of some shape: with the small embeddings of `mixed`, if there are any, and as its body that part of the
    teacher there; all else is fresh."""
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
    model: nn.Module, loss: Callable[[Batch], Tensor], rows: TokenizedDataset, held: TokenizedDataset, config: TrainingConfig, phase: str, seed: int,
    device: torch.device, scratch: Path, recorder: RunRecorder,
) -> None:  # fmt: skip
    def judge() -> dict[str, float]:
        torch.manual_seed(seed)  # the same words are hidden each time
        return {"loss": mean_loss(model, loss, held, device)}

    fit(model, loss, rows, judge, config, phase=phase, seed=seed, device=device, scratch=scratch, recorder=recorder)
