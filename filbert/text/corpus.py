"""A corpus as numbers: every word of every text, once; and as blocks of tokens, cut by one vocabulary or by two at random.

Texts are normalised and split into words as BERT's tokenizers do, so that a word can be cut into the tokens of either vocabulary.
The Arrow file holds a number per word occurrence and a dictionary of the words; blocks are gathered from the tokens of each word,
packed to their full length without padding, some million words at a time.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from filbert import FilbertError
from filbert.data.arrow import open_writer, read_table, write_table
from filbert.data.batches import TokenizedDataset
from filbert.runtime import progress

WORDS = 1_000_000  # written at a time
TEXT = "corpus.arrow"


class CorpusError(FilbertError):
    """The corpus or a vocabulary cannot be used for this."""


@dataclass(frozen=True)
class CorpusConfig:
    texts: tuple[str, ...]  # rows of filbert/tasks.py of kind text


@dataclass(frozen=True)
class Corpus:
    """Words of texts, one after the other."""

    words: list[str]  # each once, by number
    text: np.ndarray  # [occurrences] uint32, numbers of words
    ends: np.ndarray  # [texts] int64, where each text ends

    def __len__(self) -> int:
        return len(self.text)

    def only(self, texts: np.ndarray) -> "Corpus":
        """The texts of a mask [texts]."""
        lengths = np.diff(self.ends, prepend=0)
        return Corpus(self.words, self.text[np.repeat(texts, lengths)], np.cumsum(lengths[texts], dtype=np.int64))


def split_words(backend: Tokenizer, texts: Iterable[str]) -> Iterator[list[str]]:
    """The words of each text, normalised."""
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        yield [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


def write_corpus(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, file: Path) -> int:
    """Number the words of texts as they come into an Arrow file: a row per text; how many words there are.

    Raises:
        CorpusError: the tokenizer does not split into words as BERT's do.
    """
    backend = wordpiece_backend(tokenizer)
    numbers: dict[str, int] = {}
    counted = 0
    schema = pa.schema([("words", pa.list_(pa.uint32()))])
    with open_writer(file, schema) as out, progress.bar("corpus", 0) as bar:
        for part in _gathered(split_words(backend, texts), numbers):
            ends = np.cumsum([0, *map(len, part)], dtype=np.int32)
            lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(part)))
            out.write_batch(pa.record_batch([lists], schema=schema))
            counted += int(ends[-1])
            bar.update(len(part))
    write_table(pa.table({"word": list(numbers)}), file.with_suffix(".words"))
    return counted


def _gathered(texts: Iterable[list[str]], numbers: dict[str, int]) -> Iterator[list[np.ndarray]]:
    """Texts as numbers of their words, about `WORDS` words together; new words are numbered as they come."""
    part: list[np.ndarray] = []
    count = 0
    for words in texts:
        part.append(np.array([numbers.setdefault(word, len(numbers)) for word in words], np.uint32))
        count += len(words)
        if count >= WORDS:
            yield part
            part, count = [], 0
    if part:
        yield part


def read_corpus(file: Path) -> Corpus:
    """The corpus of a file."""
    lists, words = read_table(file)["words"], read_table(file.with_suffix(".words"))["word"].to_pylist()
    chunks = lists.chunks
    text = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks]) if chunks else np.empty(0, np.uint32)
    lengths = (
        np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks]) if chunks else np.empty(0, np.int64)
    )
    return Corpus(words, text, np.cumsum(lengths, dtype=np.int64))


def wordpiece_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The tokenizer behind, if its words are BERT's.

    Raises:
        CorpusError: they are not.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    if type(backend.model).__name__ != "WordPiece":
        raise CorpusError(
            f"expected a WordPiece tokenizer, whose words two vocabularies can cut; got {type(backend.model).__name__}"
        )
    return backend


class WordTokens:
    """The tokens of every word of a corpus, by one vocabulary: ragged."""

    def __init__(self, words: list[str], tokenizer: PreTrainedTokenizerBase):
        """Cut every word once."""
        cut = wordpiece_backend(tokenizer).model
        found = [[token.id for token in cut.tokenize(word)] for word in words]
        self.offsets = np.cumsum([0, *map(len, found)], dtype=np.int64)
        self.ids = np.fromiter((i for row in found for i in row), np.int32)
        self.special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "mask", "pad")}
        self.size = len(tokenizer)


def pack_blocks(corpus: Corpus, by: list[WordTokens], share: float, length: int, seed: int) -> TokenizedDataset:
    """The corpus as blocks of `length` tokens, [CLS] and [SEP] included, without padding.

    With two vocabularies each word is cut by the second with the probability `share`; the second's tokens are numbered after all
    of the first's, and the special tokens of a block are of the second with that probability too.
    """
    draw = np.random.default_rng(seed)
    second = draw.random(len(corpus.text)) < share if len(by) > 1 else np.zeros(len(corpus.text), bool)
    starts = [each.offsets[corpus.text] for each in by]
    counts = [each.offsets[corpus.text.astype(np.int64) + 1] - start for each, start in zip(by, starts, strict=True)]
    start, count = starts[0].copy(), counts[0].copy()
    if len(by) > 1:
        start[second], count[second] = starts[1][second] + len(by[0].ids), counts[1][second]
    shift = 0
    flat = []
    for each in by:
        flat.append(each.ids + shift)
        shift += each.size
    every = np.concatenate(flat)
    at = np.repeat(start - (np.cumsum(count) - count), count) + np.arange(count.sum())
    tokens, begins = every[at], np.zeros(count.sum(), bool)
    begins[(np.cumsum(count) - count)[count > 0]] = True
    inner = length - 2
    number = len(tokens) // inner
    if not number:
        raise CorpusError(f"the corpus has {len(tokens)} tokens, less than one block of {inner}")
    ids = np.empty((number, length), np.uint32)
    word = np.full((number, length), -1, np.int32)
    ids[:, 1:-1] = tokens[: number * inner].reshape(number, inner)
    where = begins[: number * inner].reshape(number, inner)
    where[:, 0] = True  # what is left of a word that began in the block before counts as one
    word[:, 1:-1] = np.where(where, np.cumsum(where, axis=1) - 1, -1)
    other = draw.random(number) < share if len(by) > 1 else np.zeros(number, bool)
    for place, name in ((0, "cls"), (-1, "sep")):
        ids[:, place] = np.where(other, by[0].size + by[-1].special[name], by[0].special[name])
    flat_ids = ids.ravel()
    rows = np.arange(number)
    return TokenizedDataset(
        ids=flat_ids,
        types=np.zeros(len(flat_ids), np.uint8),
        offsets=np.arange(number + 1, dtype=np.int64) * length,
        label=np.full(number, -1, np.int64),
        idx=rows.astype(np.int32),
        hash=rows.astype(np.int64),
        pad=by[0].special["pad"],
        word=word.ravel(),
    )
