"""The transfer set: what is kept, that nothing held out gets in, and that its rows are the task's but for the label."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from tiny import find_task, tiny_tokenizer

from filbert import FilbertError
from filbert.cache import build
from filbert.data import arrow, batches, tasks
from filbert.data.row_validation import low_bits, text_hash
from filbert.methods.context import MethodContext
from filbert.models import checkpoints
from filbert.text.transfer import (
    FilterConfig,
    HeldOutRows,
    Texts,
    TransferFilter,
    row_texts,
    split_sentences,
    to_rows,
)

CONFIG = FilterConfig(min_words=3, max_words=12, shingle=3, overlap=0.5, quoted=0.5, max_rows=100)
FAR = ["The plot is thin but I liked the songs and the dog.", "A great deal of fun for all."]


def one(*texts: str) -> list[Texts]:
    return [(text,) for text in texts]


def test_sentences_end_where_they_end() -> None:
    text = 'A fine film. "Really?" Yes!<br /><br />It cost 3.5 million\nand more'
    assert list(split_sentences(text)) == ["A fine film.", '"Really?', "Yes!", "It cost 3.5 million", "and more"]


def test_nothing_held_out_gets_in() -> None:
    """Not as it is, not in other case or spacing, not with a word more or less."""
    held = ["The plot is thin and the cast is wasted on it.", "Great fun"]
    close = [
        "the plot is thin  and the cast is wasted on it .",
        "Yes, the plot is thin and the cast is wasted on it.",
        "The plot is thin and the cast is wasted",
        "GREAT FUN",
    ]
    every = one(*close, *FAR, *held)
    kept = TransferFilter([], HeldOutRows(one(*held), 3), CONFIG)
    assert set(kept.sample("texts", lambda: every)) == set(one(*FAR))
    assert kept.counts == {"leaking": 4, "length": 2, "texts": 2, "over_max_rows": 0}
    kept = TransferFilter([], HeldOutRows(one(*held), 3), CONFIG)
    assert list(kept.filter_all("own", every)) == one(*FAR)
    assert kept.counts == {"leaking": 6, "own": 2}


def test_a_text_that_quotes_a_held_out_row_tells_of_it() -> None:
    row = "The plot is thin and the cast is wasted on it."
    long = f"As my neighbour said to me yesterday on the stairs of our house, {row.lower()} But I for one did like the dog in it."
    kept = TransferFilter([], HeldOutRows(one(row), 3), CONFIG)
    assert not list(kept.filter_all("own", one(long)))
    assert list(
        TransferFilter([], HeldOutRows(one(row), 3), replace(CONFIG, quoted=1.0)).filter_all("own", one(long))
    ) == one(long)


def test_a_held_out_pair_is_held_out_both_ways_where_the_task_is_symmetric() -> None:
    pair = ("the dog sleeps here", "a cat runs there now")
    assert not list(TransferFilter([], HeldOutRows([pair], 3, symmetric=True), CONFIG).filter_all("own", [pair[::-1]]))
    assert (
        list(TransferFilter([], HeldOutRows([pair], 3), CONFIG).filter_all("own", [pair[::-1]])) == []
    )  # its shingles give it away
    assert list(TransferFilter([], HeldOutRows([pair], 9), CONFIG).filter_all("own", [pair[::-1]])) == [pair[::-1]]


def test_each_text_is_kept_once_and_no_training_row_is() -> None:
    texts = [f"film number {i} was good" for i in (1, 2, 1, 3, 4)]
    kept = TransferFilter(one("Film number 4 was good!"), HeldOutRows([], 3), CONFIG)
    assert list(kept.filter_all("own", one(*texts))) == one(texts[0], texts[1], texts[3])
    assert kept.counts["duplicate"] == 2


def test_a_sample_is_drawn_from_all_of_a_text_whatever_its_order() -> None:
    texts = one(*(f"film number {i} was good" for i in range(200)))
    few = replace(CONFIG, max_rows=20)
    drawn = list(TransferFilter([], HeldOutRows([], 3), few).sample("texts", lambda: texts))
    other = list(TransferFilter([], HeldOutRows([], 3), few).sample("texts", lambda: texts[::-1]))
    assert len(drawn) == 20
    assert set(drawn) == set(other)
    assert 60 < np.mean([texts.index(text) for text in drawn]) < 140


@pytest.mark.parametrize(("name", "none"), [("sst2", -1), ("stsb", None)])
def test_rows_are_the_tasks_without_a_label(name: str, none: int | None) -> None:
    task = find_task(name)
    texts = [tuple(f"text {i} of {column}" for column in task.columns) for i in range(3)]
    table = pa.Table.from_pylist(list(to_rows(texts, task)), schema=arrow.row_schema(task))
    assert table["idx"].to_pylist() == [low_bits(text_hash(*each), 31) for each in texts]
    assert table["hash"].to_pylist() == [text_hash(*each) for each in texts]
    assert list(row_texts(table, task)) == texts
    label = table["label"].to_numpy()
    assert (label == none).all() if none else np.isnan(label).all()


def test_what_cannot_be_a_text_is_named() -> None:
    assert [text.name for text in tasks.transfer_texts(find_task("sst2"))] == ["imdb_reviews"]
    assert tasks.transfer_texts(find_task("mrpc")) == ()
    with pytest.raises(FilbertError, match=r"sst2.transfer: expected tasks of kind text, got cola \(single\)"):
        tasks.transfer_texts(replace(find_task("sst2"), transfer=("cola",)))


def test_rows_that_stay_are_asked_about_once(context: MethodContext) -> None:
    """When more texts are taken, the teacher is asked about the new ones alone."""
    texts = one(
        *(
            f"the {noun} is {word}"
            for noun in ("film", "plot", "cat")
            for word in ("good", "bad", "fine", "dull", "long")
        )
    )

    def asked(chosen: list[Texts]) -> int:
        table = pa.Table.from_pylist(list(to_rows(chosen, context.task)), schema=arrow.row_schema(context.task))
        return build.build_cache(
            context.cache.folder, checkpoints.load_model(context.teacher), table,
            lambda part: batches.tokenize(part, context.task, tiny_tokenizer(), batches.TokenizerConfig(16)),
            ("logits",), context.cache.expected, context.cache_config, context.device,
        )  # fmt: skip

    assert [asked(texts[2:9]), asked(texts), asked(texts[4:])] == [7, 8, 0]


def test_why_rows_are_not_kept_is_counted() -> None:
    kept = TransferFilter([], HeldOutRows([], 3), CONFIG)
    list(kept.sample("texts", lambda: one("too short", "long " * 13, *FAR)))
    assert kept.counts == Counter({"length": 2, "texts": 2, "over_max_rows": 0})
