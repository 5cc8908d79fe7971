"""Tokenizers of local folders, and whether they know the text that they are given."""

from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from filbert import FilbertError
from filbert.runtime.files import read_json


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder; the hub is not asked and no code of the folder runs.

    Raises:
        FilbertError: there is none, it cannot be read, or the model beside it has fewer tokens.
    """
    if not folder.is_dir() or not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        raise FilbertError(f"{folder}: no tokenizer; expected a model's folder with tokenizer.json or vocab.txt")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare ones
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FilbertError(f"{folder}: not a tokenizer that can be used: {reason}") from error
    file = folder / "config.json"
    embedded = read_json(file).get("vocab_size") if file.exists() else None
    if embedded is not None and len(tokenizer) > embedded:
        raise FilbertError(f"{folder}: its tokenizer has {len(tokenizer)} tokens, but its model embeds {embedded}; "
                           "they do not belong together")  # fmt: skip
    return tokenizer


def unknown_share(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> float:
    """The share of tokens that are unknown, special ones left out; 0 for a tokenizer that knows all text."""
    unknown = ids == tokenizer.unk_token_id if tokenizer.unk_token_id is not None else np.zeros(len(ids), bool)
    special = np.isin(ids, tokenizer.all_special_ids) & ~unknown
    return float(unknown.sum() / max(1, len(ids) - special.sum()))
