"""From Arrow rows to batches: tokenised once, padded to the longest row of a batch; batch_order.py says which rows make one."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from filbert import FilbertError
from filbert.data.arrow import fixed_lists, read_table
from filbert.data.tasks import Task, TaskKind
from filbert.data.tokenizers import load_tokenizer as load_tokenizer  # whoever makes batches needs one
from filbert.data.tokenizers import unknown_share
from filbert.runtime import progress
from filbert.runtime.config import Range

MANY_UNKNOWN, MOST_UNKNOWN = 0.1, 0.5  # shares of a split's tokens that are told, and refused
ROWS_AT_A_TIME = 16384  # rows whose tokens are Python lists at one time


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens."""

    max_length: Annotated[int, Range(4)]  # tokens, special ones included; longer rows are cut


@dataclass(frozen=True)
class Batch:
    """Some rows, padded. Masks are bool and false on padding."""

    ids: Tensor  # [B, T] int64
    types: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool
    label: (
        Tensor  # [B] int64, float32 for regression, multilabel [B, C] float32; tagging [B, T], -1 where no word begins
    )
    word: Tensor | None = None  # [B, T] int64: the index of the word that a token begins, -1 if none
    targets: Mapping[str, Tensor] = field(default_factory=dict)  # the teacher's cached outputs for these rows, [B, …]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        targets = {name: value.to(device, non_blocking=True) for name, value in self.targets.items()}
        ids, types, mask, label = (
            t.to(device, non_blocking=True) for t in (self.ids, self.types, self.mask, self.label)
        )
        word = None if self.word is None else self.word.to(device, non_blocking=True)
        return Batch(ids, types, mask, label, word, targets)


class TargetSource(Protocol):
    """The teacher's cached outputs for the rows of one split, by position."""

    def take(self, rows: np.ndarray, /) -> Mapping[str, Tensor]:
        """Targets by column, [B, …], of the rows at these positions."""
        ...


@dataclass(frozen=True)
class TargetSubset:
    """The targets of some of the rows of a source."""

    source: TargetSource
    rows: np.ndarray  # their positions in the source

    def take(self, at: np.ndarray) -> Mapping[str, Tensor]:
        """Targets of the rows at these positions of the selection."""
        return self.source.take(self.rows[at])


@dataclass(frozen=True)
class TokenizedDataset:
    """The rows of one split as tokens, ragged: row i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray  # [tokens] uint32
    types: np.ndarray  # [tokens] uint8
    offsets: np.ndarray  # [N + 1] int64
    label: (
        np.ndarray
    )  # as in Batch, [N] or [N, C]; for tagging [words] int64, ragged: row i is `label[tags[i]:tags[i + 1]]`
    idx: np.ndarray  # [N] int32
    hash: np.ndarray  # [N] int64
    pad: int
    word: np.ndarray | None = None  # [tokens] int32, see Batch; optional
    tags: np.ndarray | None = None  # [N + 1] int64, offsets into `label`; for tagging only
    target_sources: tuple[TargetSource, ...] = ()

    def __len__(self) -> int:
        return len(self.idx)

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64, tokens of each row."""
        return np.diff(self.offsets)

    def with_targets(self, *sources: TargetSource) -> "TokenizedDataset":
        """The same rows, whose batches also hold the targets of the sources."""
        return replace(self, target_sources=sources)

    def select(self, rows: np.ndarray) -> "TokenizedDataset":
        """Some rows, in the order of the positions `rows`, with their targets."""
        offsets, at = _ragged(self.offsets, rows)
        tokens = {name: getattr(self, name)[at] for name in ("ids", "types")}
        whole = {name: getattr(self, name)[rows] for name in ("idx", "hash")}
        tags, labelled = (None, rows) if self.tags is None else _ragged(self.tags, rows)
        word = None if self.word is None else self.word[at]
        sources = tuple(TargetSubset(source, rows) for source in self.target_sources)
        return replace(
            self,
            **tokens,
            **whole,
            label=self.label[labelled],
            offsets=offsets,
            word=word,
            tags=tags,
            target_sources=sources,
        )

    @property
    def token_hashes(self) -> np.ndarray:
        """[N] uint64, a hash of each row's token ids: equal for two tokenizers that cut a row into the same tokens."""
        place = np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.lengths)
        return np.add.reduceat(hash_terms(self.ids, place), self.offsets[:-1])

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows at these positions, padded to the longest of them."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        column = np.arange(lengths.max())
        mask = column < lengths[:, None]
        at = np.where(mask, self.offsets[rows][:, None] + column, 0)
        ids = np.where(mask, self.ids[at], self.pad).astype(np.int64)
        types = np.where(mask, self.types[at], 0).astype(np.int64)
        tensor = torch.from_numpy
        word = None if self.word is None else tensor(np.where(mask, self.word[at], -1).astype(np.int64))
        label = self.label[rows] if self.tags is None else self.labels_by_token(rows, mask, at)
        targets = {name: value for source in self.target_sources for name, value in source.take(rows).items()}
        return Batch(tensor(ids), tensor(types), tensor(mask), tensor(label), word, targets)

    def labels_by_token(self, rows: np.ndarray, mask: np.ndarray, at: np.ndarray) -> np.ndarray:
        """The tags of rows at the tokens `at` [B, T] that begin a word; -1 at other tokens, on padding, and without labels."""
        assert self.tags is not None
        assert self.word is not None
        if not len(self.label):
            return np.full(at.shape, -1)
        word, first = self.word[at], self.tags[rows][:, None]
        begins = mask & (word >= 0) & (first + word < self.tags[rows + 1][:, None])
        return np.where(begins, self.label[np.where(begins, first + word, 0)], -1)


def hash_terms(tokens: np.ndarray, position: np.ndarray) -> np.ndarray:
    """uint64, one term for each token at its position in its row; the sum of a row's terms is its hash."""
    powers = np.cumprod(np.full(int(position.max(initial=0)) + 1, 0x9E3779B97F4A7C15, np.uint64))
    return (tokens.astype(np.uint64) + np.uint64(1)) * powers[position]


def _ragged(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The new offsets of a selection of ragged rows, and the positions of their values."""
    lengths = np.diff(offsets)[rows]
    new = np.concatenate([[0], np.cumsum(lengths)])
    return new, np.arange(new[-1]) + np.repeat(offsets[rows] - new[:-1], lengths)


def tokenize(
    table: pa.Table, task: Task, tokenizer: PreTrainedTokenizerBase, config: TokenizerConfig, words: bool = False
) -> TokenizedDataset:
    """Tokenise the rows of `table`; pairs share `max_length`, the longer text is cut first.

    With `words`, and always for tagging, also store which token begins which word: words are common to tokenizers whose tokens
    differ.
    """
    words = words or task.kind is TaskKind.TAGGING
    parts = [
        _encode(table.slice(start, ROWS_AT_A_TIME), task, tokenizer, config, words)
        for start in range(0, max(1, len(table)), ROWS_AT_A_TIME)
    ]
    return concatenate(*parts)


def _encode(
    table: pa.Table, task: Task, tokenizer: PreTrainedTokenizerBase, config: TokenizerConfig, words: bool
) -> TokenizedDataset:
    texts = [table[name].to_pylist() for name in task.columns]
    tokens: Any = {"input_ids": [], "token_type_ids": []}  # for an empty table, which tokenizers refuse
    if len(table):
        tokens = tokenizer(*texts, truncation=True, max_length=config.max_length, return_token_type_ids=True,
                           return_attention_mask=False, return_offsets_mapping=words)  # fmt: skip
    lengths = [len(row) for row in tokens["input_ids"]]
    label, tags = table["label"].combine_chunks(), None
    if task.kind is TaskKind.TAGGING:
        counts = pa.compute.fill_null(pa.compute.list_value_length(label), 0)
        label, tags = label.flatten(), np.cumsum([0, *counts.to_pylist()], dtype=np.int64)
    number = np.float32 if task.kind is TaskKind.REGRESSION else np.int64
    return TokenizedDataset(
        ids=np.fromiter((i for row in tokens["input_ids"] for i in row), np.uint32),
        types=np.fromiter((t for row in tokens["token_type_ids"] for t in row), np.uint8),
        offsets=np.cumsum([0, *lengths], dtype=np.int64),
        label=fixed_lists(label)
        if task.kind is TaskKind.MULTILABEL
        else label.to_numpy(zero_copy_only=False).astype(number),
        idx=table["idx"].to_numpy(),
        hash=table["hash"].to_numpy(),
        pad=tokenizer.pad_token_id or 0,
        word=np.concatenate(
            [np.empty(0, np.int32), *(_words(tokens[i], row) for i, row in enumerate(zip(*texts, strict=True)))]
        )
        if words
        else None,
        tags=tags,
    )


def concatenate(*parts: TokenizedDataset) -> TokenizedDataset:
    """The rows of several splits one after the other, without targets."""
    if len(parts) == 1:
        return parts[0]

    def flat(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    def ends(lengths: list[np.ndarray]) -> np.ndarray:
        return np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64)

    offsets = ends([part.lengths for part in parts])
    tags = None if parts[0].tags is None else ends([np.diff(part.tags) for part in parts if part.tags is not None])
    word = None if any(part.word is None for part in parts) else flat("word")
    return TokenizedDataset(
        flat("ids"), flat("types"), offsets, flat("label"), flat("idx"), flat("hash"), parts[0].pad, word, tags
    )


def _words(tokens: Encoding, texts: tuple[str, ...]) -> np.ndarray:
    """For each token of a row the index of the whitespace-separated word it begins, or -1; the second text of a pair counts on."""
    spaces = [np.fromiter(map(str.isspace, text), bool, len(text)) for text in texts]
    begins = [~space & np.concatenate([[True], space[:-1]]) for space in spaces]
    before = np.concatenate([[0], np.cumsum([b.sum() for b in begins])])
    number = [np.cumsum(b) - 1 + n for b, n in zip(begins, before, strict=False)]  # word index at each character
    out, last = np.full(len(tokens.ids), -1, np.int32), -1
    for at, (text, (start, end)) in enumerate(zip(tokens.sequence_ids, tokens.offsets, strict=True)):
        if text is not None and end > start:
            word = number[text][end - 1]
            out[at], last = (word, word) if word > last else (-1, last)
    return out


def load_split(
    prepared: Path,
    name: str,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    config: TokenizerConfig,
    words: bool = False,
) -> tuple[pa.Table, TokenizedDataset]:
    """The rows of one split in the folder `prepared`, as a table and tokenised.

    Raises:
        FilbertError: most of their tokens are unknown to the tokenizer.
    """
    file = prepared / f"{name}.arrow"
    table = read_table(file)
    rows = tokenize(table, task, tokenizer, config, words)
    if (share := unknown_share(rows.ids, tokenizer)) > MOST_UNKNOWN:
        raise FilbertError(
            f"{file}: {share:.0%} of its tokens are unknown to the tokenizer; expected one that was made for such text"
        )
    if share > MANY_UNKNOWN:
        progress.log(f"{file}: {share:.0%} of its tokens are unknown to the tokenizer")
    return table, rows
