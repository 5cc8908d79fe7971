"""Batches: every row once, padded and masked as transformers would, in an order that depends on seed and epoch alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import find_task, tiny_tokenizer

from filbert import FilbertError
from filbert.data import arrow, batch_order, batches, splits


def test_a_batch_equals_the_tokenizers_own(prepared: splits.Prepared, encoded: batches.TokenizedDataset) -> None:
    texts = prepared.tables["train"]["sentence"].to_pylist()
    chosen = np.array([3, 0, 17])
    wanted = tiny_tokenizer()(
        [texts[i] for i in chosen], truncation=True, max_length=16, padding=True, return_tensors="pt"
    )
    batch = encoded.batch(chosen)
    assert torch.equal(batch.ids, wanted["input_ids"])
    assert torch.equal(batch.mask.long(), wanted["attention_mask"])
    assert batch.mask.dtype is torch.bool
    assert batch.label.tolist() == prepared.tables["train"]["label"].take(chosen).to_pylist()


def test_pairs_have_two_segments() -> None:
    row = {"idx": 0, "sentence1": "a cat", "sentence2": "the dog runs", "label": 1, "hash": 5}
    table = pa.Table.from_pylist([row], schema=arrow.row_schema(find_task("mrpc")))
    batch = batches.tokenize(table, find_task("mrpc"), tiny_tokenizer(), batches.TokenizerConfig(16)).batch(
        np.array([0])
    )
    assert batch.types.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]  # [CLS] a cat [SEP] the dog runs [SEP]


def test_long_rows_are_cut(prepared: splits.Prepared) -> None:
    cut = batches.tokenize(prepared.tables["train"], find_task("sst2"), tiny_tokenizer(), batches.TokenizerConfig(6))
    assert cut.lengths.max() == 6


def test_an_epoch_holds_every_row_once_and_batches_rows_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 120, 5000)
    epoch = batch_order.shuffled_batches(lengths, 32, seed=1, epoch=0)
    assert sorted(np.concatenate(epoch)) == list(range(5000))
    padded = sum(len(rows) * lengths[rows].max() for rows in epoch)
    assert padded < 1.1 * lengths.sum()  # in random order it is 1.9 times as much


def test_batches_of_so_many_tokens_hold_every_row_once_and_are_as_many_in_each_epoch() -> None:
    lengths = np.random.default_rng(0).integers(3, 120, 5000)
    lengths[7] = 1500  # longer than a batch: alone
    epochs = [batch_order.shuffled_batches(lengths, 32, seed=1, epoch=epoch, tokens=1000) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(np.concatenate(epoch)) == list(range(5000))
        padded = [len(rows) * lengths[rows].max() for rows in epoch]
        assert sorted(padded)[-2:] == [1000, 1500]
        assert sum(padded) < 1.01 * lengths.sum()
        assert len(epoch) == len(batch_order.token_cuts(lengths, 1000)) + 1
    assert [r.tolist() for r in epochs[0]] != [r.tolist() for r in epochs[1]]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = np.arange(500) % 40
    first = [batch_order.shuffled_batches(lengths, 8, seed, epoch) for seed, epoch in ((1, 0), (1, 0), (1, 1), (2, 0))]
    same = [all(map(np.array_equal, first[0], other)) for other in first[1:]]
    assert same == [True, False, False]


def test_many_rows_are_tokenised_in_parts_and_joined(
    prepared: splits.Prepared, encoded: batches.TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "ROWS_AT_A_TIME", 7)
    task = find_task("sst2")
    parts = batches.tokenize(prepared.tables["train"], task, tiny_tokenizer(), batches.TokenizerConfig(16), words=True)
    whole = replace(encoded, word=parts.word)
    for name in ("ids", "types", "offsets", "label", "idx", "hash"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    nothing = encoded.select(np.arange(0))
    same = batches.concatenate(nothing, encoded, nothing)
    assert len(same) == len(encoded)
    np.testing.assert_array_equal(same.batch(np.arange(5)).ids, encoded.batch(np.arange(5)).ids)


@pytest.mark.parametrize("name", ["sst2", "mrpc", "stsb", "wikiann"])
def test_no_rows_are_rows_too(name: str) -> None:
    task = find_task(name)
    nothing = batches.tokenize(
        arrow.row_schema(task).empty_table(), task, tiny_tokenizer(), batches.TokenizerConfig(16)
    )
    assert len(nothing) == len(batches.concatenate(nothing, nothing)) == 0


def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": len(tiny_tokenizer())}))
    assert len(batches.load_tokenizer(tmp_path)) == len(tiny_tokenizer())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 20}))
    with pytest.raises(
        FilbertError, match=f"its tokenizer has {len(tiny_tokenizer())} tokens, but its model embeds 20"
    ):
        batches.load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("the film was good", ""),
        ("the film was good indeed", "20% of its tokens are unknown"),
        ("das war gut the", "75% of its"),
    ],
)
def test_rows_whose_words_are_unknown_are_told_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, text: str, said: str
) -> None:
    task = find_task("sst2")
    rows = [{"idx": n, "sentence": text, "label": 0, "hash": n} for n in range(3)]
    arrow.write_rows(rows, task, tmp_path / "train.arrow")
    if "75%" in said:
        with pytest.raises(
            FilbertError, match=f"train.arrow: {said} tokens are unknown to the tokenizer; expected one"
        ):
            batches.load_split(tmp_path, "train", task, tiny_tokenizer(), batches.TokenizerConfig(16))
    else:
        batches.load_split(tmp_path, "train", task, tiny_tokenizer(), batches.TokenizerConfig(16))
        assert said in capsys.readouterr().err
