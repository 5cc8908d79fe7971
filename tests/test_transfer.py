"""The transfer set: what is kept, that nothing held out gets in, and that its rows are the task's but for the label."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from filbert import FilbertError, rows, tasks
from filbert.tables import text_hash
from filbert.transfer import HeldOut, KeepConfig, Kept, Texts, TransferConfig, as_rows, sentences, texts_of

CONFIG = KeepConfig(least_words=3, most_words=12, shingle=3, overlap=0.5, most=100)
FAR = ["The plot is thin but I liked the songs and the dog.", "A great deal of fun for all."]


def one(*texts: str) -> list[Texts]:
    return [(text,) for text in texts]


def test_sentences_end_where_they_end() -> None:
    text = 'A fine film. "Really?" Yes!<br /><br />It cost 3.5 million\nand more'
    assert list(sentences(text)) == ["A fine film.", '"Really?', "Yes!", "It cost 3.5 million", "and more"]


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
    kept = Kept([], HeldOut(one(*held), 3), CONFIG)
    assert set(kept.sample("texts", lambda: every)) == set(one(*FAR))
    assert kept.counts == {"held out": 4, "of another length": 2, "kept texts": 2, "not drawn": 0}
    kept = Kept([], HeldOut(one(*held), 3), CONFIG)
    assert list(kept.of("own", every)) == one(*FAR)
    assert kept.counts == {"held out": 6, "kept own": 2}


def test_a_held_out_pair_is_held_out_both_ways_where_the_task_is_symmetric() -> None:
    pair = ("the dog sleeps here", "a cat runs there now")
    assert not list(Kept([], HeldOut([pair], 3, symmetric=True), CONFIG).of("own", [pair[::-1]]))
    assert list(Kept([], HeldOut([pair], 3), CONFIG).of("own", [pair[::-1]])) == []  # its shingles give it away
    assert list(Kept([], HeldOut([pair], 9), CONFIG).of("own", [pair[::-1]])) == [pair[::-1]]


def test_each_text_is_kept_once_and_no_training_row_is() -> None:
    texts = [f"film number {i} was good" for i in (1, 2, 1, 3, 4)]
    kept = Kept(one("Film number 4 was good!"), HeldOut([], 3), CONFIG)
    assert list(kept.of("own", one(*texts))) == one(texts[0], texts[1], texts[3])
    assert kept.counts["seen before"] == 2


def test_a_sample_is_drawn_from_all_of_a_text_whatever_its_order() -> None:
    texts = one(*(f"film number {i} was good" for i in range(200)))
    few = replace(CONFIG, most=20)
    drawn = list(Kept([], HeldOut([], 3), few).sample("texts", lambda: texts))
    other = list(Kept([], HeldOut([], 3), few).sample("texts", lambda: texts[::-1]))
    assert len(drawn) == 20
    assert set(drawn) == set(other)
    assert 60 < np.mean([texts.index(text) for text in drawn]) < 140


@pytest.mark.parametrize(("name", "none"), [("sst2", -1), ("stsb", None)])
def test_rows_are_the_tasks_without_a_label(name: str, none: int | None) -> None:
    task = tasks.find(name)
    texts = [tuple(f"text {i} of {column}" for column in task.columns) for i in range(3)]
    table = pa.Table.from_pylist(list(as_rows(texts, task)), schema=rows.schema(task))
    assert table["idx"].to_pylist() == [0, 1, 2]
    assert table["hash"].to_pylist() == [text_hash(*each) for each in texts]
    assert list(texts_of(table, task)) == texts
    label = table["label"].to_numpy()
    assert (label == none).all() if none else np.isnan(label).all()


def test_what_cannot_be_a_text_is_named() -> None:
    keep = {"keep": CONFIG}
    assert [text.name for text in TransferConfig({"sst2": ("imdb_reviews",)}, **keep).of(tasks.find("sst2"))] == [
        "imdb_reviews"
    ]
    assert TransferConfig({"sst2": ("imdb_reviews",)}, **keep).of(tasks.find("mrpc")) == ()
    with pytest.raises(FilbertError, match="expected rows of kind text, got cola of kind single"):
        TransferConfig({"sst2": ("cola",)}, **keep).of(tasks.find("sst2"))
    with pytest.raises(FilbertError, match="its rows are pairs"):
        TransferConfig({"mrpc": ("imdb_reviews",)}, **keep).of(tasks.find("mrpc"))


def test_why_rows_are_not_kept_is_counted() -> None:
    kept = Kept([], HeldOut([], 3), CONFIG)
    list(kept.sample("texts", lambda: one("too short", "long " * 13, *FAR)))
    assert kept.counts == Counter({"of another length": 2, "kept texts": 2, "not drawn": 0})
