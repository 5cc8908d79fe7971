"""The pretraining corpus: word ids of every text, and blocks of tokens from one vocabulary or, at random, from two.

Texts are normalised and split into words as BERT's tokenizers do, so that a word can be tokenised by either vocabulary. The Arrow
file holds a word id per occurrence and a dictionary of the words; blocks are gathered from the tokens of each word and packed to
full length without padding.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from filbert import FilbertError
from filbert.data.arrow import evenly_spaced, open_writer, read_table, write_table
from filbert.data.batches import TokenizedDataset
from filbert.runtime import progress
from filbert.runtime.config import PositiveInt

WORDS = 1_000_000  # in memory while the file is written
TEXT = "corpus.arrow"


class CorpusError(FilbertError):
    """The corpus is too small, or a tokenizer is not of a kind that it supports."""


@dataclass(frozen=True)
class CorpusConfig:
    """The texts of the corpus."""

    texts: tuple[str, ...]  # tasks of kind text
    max_rows: PositiveInt | None = None  # of each text, evenly spaced; none: all of it


@dataclass(frozen=True)
class Corpus:
    """Word ids of texts, one after the other."""

    words: list[str]  # by id
    text: np.ndarray  # [occurrences] uint32, word ids
    ends: np.ndarray  # [texts] int64, the end of each text in `text`

    def __len__(self) -> int:
        return len(self.text)

    def select(self, mask: np.ndarray) -> "Corpus":
        """The texts where `mask` [texts] is true."""
        lengths = np.diff(self.ends, prepend=0)
        return Corpus(self.words, self.text[np.repeat(mask, lengths)], np.cumsum(lengths[mask], dtype=np.int64))


def sample_evenly(texts: Callable[[], Iterable[str]], most: int | None) -> Iterator[str]:
    """At most so many of the texts, evenly spaced; `texts` opens them, twice where they are counted first."""
    if most is None:
        yield from texts()
        return
    drawn = set(evenly_spaced(sum(1 for _ in texts()), most).tolist())
    yield from (text for number, text in enumerate(texts()) if number in drawn)


def split_words(backend: Tokenizer, texts: Iterable[str]) -> Iterator[list[str]]:
    """The normalised words of each text."""
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        yield [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


def write_corpus(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, file: Path) -> int:
    """Write the word ids of texts to an Arrow file, a row per text; the number of words.

    Raises:
        CorpusError: the tokenizer is not of BERT's kind.
    """
    backend = wordpiece_backend(tokenizer)
    ids: dict[str, int] = {}
    count = 0
    schema = pa.schema([("words", pa.list_(pa.uint32()))])
    with open_writer(file, schema) as out, progress.bar("corpus", 0) as bar:
        for part in _batched_ids(split_words(backend, texts), ids):
            ends = np.cumsum([0, *map(len, part)], dtype=np.int32)
            lists = pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(part)))
            out.write_batch(pa.record_batch([lists], schema=schema))
            count += int(ends[-1])
            bar.update(len(part))
    write_table(pa.table({"word": list(ids)}), file.with_suffix(".words"))
    return count


def _batched_ids(texts: Iterable[list[str]], ids: dict[str, int]) -> Iterator[list[np.ndarray]]:
    """Texts as word ids, about `WORDS` words at a time; a new word gets the next id."""
    part: list[np.ndarray] = []
    count = 0
    for words in texts:
        part.append(np.array([ids.setdefault(word, len(ids)) for word in words], np.uint32))
        count += len(words)
        if count >= WORDS:
            yield part
            part, count = [], 0
    if part:
        yield part


def read_corpus(file: Path) -> Corpus:
    """The corpus that `write_corpus` wrote."""
    lists, words = read_table(file)["words"], read_table(file.with_suffix(".words"))["word"].to_pylist()
    chunks = lists.chunks
    text = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks]) if chunks else np.empty(0, np.uint32)
    lengths = (
        np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks]) if chunks else np.empty(0, np.int64)
    )
    return Corpus(words, text, np.cumsum(lengths, dtype=np.int64))


def wordpiece_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The `tokenizers` object of a WordPiece tokenizer.

    Raises:
        CorpusError: it is of another kind.
    """
    backend: Tokenizer = tokenizer.backend_tokenizer
    if type(backend.model).__name__ != "WordPiece":
        raise CorpusError(
            f"expected a WordPiece tokenizer, whose words two vocabularies can tokenise; got {type(backend.model).__name__}"
        )
    return backend


class WordTokens:
    """The token ids of every word of a corpus by one vocabulary, ragged."""

    def __init__(self, words: list[str], tokenizer: PreTrainedTokenizerBase):
        """Tokenise every word once."""
        model = wordpiece_backend(tokenizer).model
        found = [[token.id for token in model.tokenize(word)] for word in words]
        self.offsets = np.cumsum([0, *map(len, found)], dtype=np.int64)
        self.ids = np.fromiter((i for row in found for i in row), np.int32)
        self.special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "mask", "pad")}
        self.size = len(tokenizer)


def pack_blocks(
    corpus: Corpus, vocabularies: list[WordTokens], second_probability: float, length: int, seed: int
) -> TokenizedDataset:
    """The corpus as blocks of `length` tokens, [CLS] and [SEP] included, without padding.

    With two vocabularies each word is tokenised by the second with the given probability; the ids of the second follow those of
    the first, and the special tokens of a block are of the second with that probability too.

    Raises:
        CorpusError: the corpus is shorter than one block.
    """
    generator = np.random.default_rng(seed)
    mixed = len(vocabularies) > 1
    second = generator.random(len(corpus.text)) < second_probability if mixed else np.zeros(len(corpus.text), bool)
    tokens, begins = _tokens(corpus, vocabularies, second)
    inner = length - 2  # without [CLS] and [SEP]
    blocks = len(tokens) // inner
    if not blocks:
        raise CorpusError(f"the corpus has {len(tokens)} tokens, less than one block of {inner}")
    ids = np.empty((blocks, length), np.uint32)
    ids[:, 1:-1] = tokens[: blocks * inner].reshape(blocks, inner)
    second = generator.random(blocks) < second_probability if mixed else np.zeros(blocks, bool)
    first_size, first_special, last_special = vocabularies[0].size, vocabularies[0].special, vocabularies[-1].special
    for place, name in ((0, "cls"), (-1, "sep")):
        ids[:, place] = np.where(second, first_size + last_special[name], first_special[name])
    rows = np.arange(blocks)
    return TokenizedDataset(
        ids=ids.ravel(),
        types=np.zeros(ids.size, np.uint8),
        offsets=np.arange(blocks + 1, dtype=np.int64) * length,
        label=np.full(blocks, -1, np.int64),
        idx=rows.astype(np.int32),
        hash=rows.astype(np.int64),
        pad=first_special["pad"],
        word=_word_indices(begins[: blocks * inner].reshape(blocks, inner)).ravel(),
    )


def _tokens(corpus: Corpus, vocabularies: list[WordTokens], second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of all words [tokens], by the second vocabulary where `second` [occurrences]; and which begin a word."""
    starts = [each.offsets[corpus.text] for each in vocabularies]
    ends = [each.offsets[corpus.text.astype(np.int64) + 1] for each in vocabularies]
    start, count = starts[0].copy(), ends[0] - starts[0]
    if len(vocabularies) > 1:
        start[second] = starts[1][second] + len(vocabularies[0].ids)
        count[second] = (ends[1] - starts[1])[second]
    sizes = np.cumsum([0, *(each.size for each in vocabularies[:-1])])
    ids = np.concatenate([each.ids + int(size) for each, size in zip(vocabularies, sizes, strict=True)])
    before = np.cumsum(count) - count  # tokens of the words before
    begins = np.zeros(count.sum(), bool)
    begins[before[count > 0]] = True
    return ids[np.repeat(start - before, count) + np.arange(count.sum())], begins


def _word_indices(begins: np.ndarray) -> np.ndarray:
    """[blocks, length] int32: the index within its block of the word that a token begins, -1 if none. The rest of a word that
    began in the block before counts as a word."""
    begins[:, 0] = True
    inner = np.where(begins, np.cumsum(begins, axis=1) - 1, -1)
    return np.pad(inner, ((0, 0), (1, 1)), constant_values=-1).astype(np.int32)
