"""A WordPiece vocabulary trained on a corpus, and the embeddings that another vocabulary's table has for its tokens."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from filbert.text.corpus import Corpus, wordpiece_backend

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ALPHABET = 500  # letters that a vocabulary may have


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
