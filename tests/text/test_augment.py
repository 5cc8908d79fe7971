"""Augmentation: which words may be replaced, by what, and that many rows at once are varied as one alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import CPU, GOOD, find_task, tiny_config, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from filbert import FilbertError
from filbert.data import batches
from filbert.runtime import device
from filbert.text.augment import AugmentConfig, augment_rows, replaceable_words
from filbert.text.masked_lm import MaskedCopy, MaskedLanguageModel
from filbert.text.word_vectors import WordVectors
from filbert.tracking.run_recorder import RunRecorder
from filbert.training.loop import TrainingConfig

CONFIG = AugmentConfig(
    variants=3,
    max_rows=None,
    beside_texts=True,
    probability=0.4,
    candidates=4,
    spacing=0,
    batch_size=5,
    masked_lm=None,
    training=None,
)
TEXTS = ["The film was great and long", "cats dogs", "a dull Movie, not warm here", "the"]


@pytest.fixture
def masked(monkeypatch: pytest.MonkeyPatch) -> MaskedLanguageModel:
    monkeypatch.setattr(device, "precision", lambda _: "float32")  # so that no rounding decides which word is likelier
    torch.manual_seed(3)
    return MaskedLanguageModel(BertForMaskedLM(tiny_config(initializer_range=0.5)), tiny_tokenizer(), CPU)


@pytest.fixture
def vectors(tmp_path: Path) -> WordVectors:
    lines = [
        "cats 1 0 0",
        "cat 0.9 0.1 0",
        "dogs 0.8 0.2 0",
        "film 0 0 1",
        "films 0 0.1 1",
        "run 0 1 0",
        "runs 0.1 1 0",
    ]
    (tmp_path / "table.txt").write_text("\n".join(lines) + "\n")
    return WordVectors(tmp_path)


def test_words_are_replaced_by_what_fits(masked: MaskedLanguageModel, vectors: WordVectors) -> None:
    """Words of one token by the model's whole words, words of several by neighbours; stop words and marks stay."""
    found = replaceable_words(TEXTS, masked, vectors, CONFIG)
    said = [[(text[p.start : p.end], p.candidates) for p in each] for text, each in zip(TEXTS, found, strict=True)]
    assert [[word for word, _ in each] for each in said] == [
        ["film", "great", "long"], ["cats", "dogs"], ["dull", "Movie", "warm"], []
    ]  # fmt: skip
    assert said[1][0][1][:2] == ["cat", "dogs"]
    assert said[1][1][1][:2] == ["cat", "cats"]
    for word, by in [*said[0], *said[2]]:
        assert 3 <= len(by) <= 4
        assert word.lower() not in by
        assert all(w.isalpha() for w in by)


def test_a_guess_is_the_models_own(masked: MaskedLanguageModel) -> None:
    """One text by hand: the masked copy, a separator, the text itself; the likeliest whole words."""
    tokenizer = masked.tokenizer
    tokens = tokenizer("the film was [MASK]", "the film was great", return_token_type_ids=True, return_tensors="pt")
    with torch.no_grad():
        logits = masked.model(**tokens).logits[0, 4]
    order = [w for w in tokenizer.convert_ids_to_tokens(logits.argsort(descending=True).tolist()) if w.isalpha()]
    (found,) = masked.predict_words([MaskedCopy("the film was [MASK]", "the film was great", 1)], 4, 8)
    assert found == [order[:4]]


def test_many_at_once_are_as_one_by_one(masked: MaskedLanguageModel, vectors: WordVectors) -> None:
    together = replaceable_words(TEXTS, masked, vectors, CONFIG)
    assert together == [replaceable_words([text], masked, vectors, replace(CONFIG, batch_size=1))[0] for text in TEXTS]


def test_masks_share_a_copy_where_they_are_spaced(masked: MaskedLanguageModel, vectors: WordVectors) -> None:
    text = "film was great plot was dull movie long short warm cold"
    asked: list[MaskedCopy] = []
    fitting = masked.predict_words
    try:
        masked.predict_words = lambda copies, count, size: asked.extend(copies) or fitting(copies, count, size)  # type: ignore[method-assign]
        apart = replaceable_words([text], masked, vectors, CONFIG)[0]
        assert [copy.masks for copy in asked] == [1] * len(apart)
        asked.clear()
        shared = replaceable_words([text], masked, vectors, replace(CONFIG, spacing=3))[0]
        assert [copy.masks for copy in asked] == [3, 3, 3]
    finally:
        del masked.predict_words
    assert [(p.start, p.end) for p in shared] == [(p.start, p.end) for p in apart]


def test_variants_are_new_and_pairs_vary_in_both(masked: MaskedLanguageModel, vectors: WordVectors) -> None:
    pairs = [("the film was great and long", "a dull movie"), ("the", "and")]
    found = list(augment_rows(pairs, masked, vectors, replace(CONFIG, variants=20, probability=0.5), seed=1))
    assert len(found) == len(set(found)) > 10
    assert not set(found) & set(pairs)
    assert all(a.startswith("the ") and " was " in a and b.startswith("a ") for a, b in found)
    assert len({a for a, _ in found}) > 5
    assert len({b for _, b in found}) > 5
    assert found == list(augment_rows(pairs, masked, vectors, replace(CONFIG, variants=20, probability=0.5), seed=1))
    assert not list(augment_rows(pairs, masked, vectors, replace(CONFIG, probability=0.0), seed=1))


def test_a_rows_variants_do_not_depend_on_the_others(masked: MaskedLanguageModel, vectors: WordVectors) -> None:
    rows = [(text,) for text in TEXTS]
    apart = [variant for row in rows for variant in augment_rows([row], masked, vectors, CONFIG, 7)]
    assert apart == list(augment_rows(rows, masked, vectors, CONFIG, 7))
    assert apart != list(augment_rows(rows, masked, vectors, CONFIG, 8))


def test_without_a_model_word_vectors_say_what_fits(vectors: WordVectors) -> None:
    (found,) = replaceable_words(["cats like film"], None, vectors, replace(CONFIG, candidates=2))
    assert [(p.start, p.candidates[0]) for p in found] == [(0, "cat"), (10, "films")]


def test_a_head_learns_what_fits(tmp_path: Path, encoded: batches.TokenizedDataset, recorder: RunRecorder) -> None:
    """After training on the tiny world an adjective stands where adjectives do."""
    torch.manual_seed(0)
    model = MaskedLanguageModel(BertForMaskedLM(tiny_config()), tiny_tokenizer(), CPU)
    model.train_head(
        encoded, TrainingConfig(60, 16, 5e-3, 0.1, "linear", 0.0, 1.0, validations=4, patience=2), 0, tmp_path, recorder
    )
    (found,) = model.predict_words([MaskedCopy("the film was [MASK] and not", "the film was great and not", 1)], 8, 8)
    assert len(set(found[0]) & {*GOOD, "bad", "awful", "dull", "cold"}) >= 6


def test_tables_of_vectors_are_read_alike_and_strictly(tmp_path: Path, vectors: WordVectors) -> None:
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "table.npy", vectors.table)
    pq.write_table(pa.table({"index": vectors.words}), tmp_path / "arrays" / "words.parquet")
    other = WordVectors(tmp_path / "arrays")
    assert other.words == vectors.words
    assert other.nearest("cats", 2) == vectors.nearest("cats", 2) == ["cat", "dogs"]
    assert other.nearest("nobody", 2) == []
    assert WordVectors(tmp_path / "arrays", max_words=3).words == vectors.words[:3]
    for text, said in (
        ("a 1 2\nb 1\n", "line 2: expected a word and 2 numbers, got 'b 1'"),
        ("a 1 x\n", "line 1: expected a word and numbers"),
        ("a\n", "line 1: expected a word and some numbers"),
        ("", "got an empty file"),
    ):
        (tmp_path / "table.txt").write_text(text)
        with pytest.raises(FilbertError, match=said):
            WordVectors(tmp_path)
    (tmp_path / "table.txt").write_text("a b 1 2\nb 1 2\n".replace("a b 1 2", "a 1 2", 1) + "new york 3 4\n")
    assert WordVectors(tmp_path).words == ["a", "b", "new york"]
    assert WordVectors(tmp_path).nearest("b", 15) == ["a", "new york"]  # fewer words than were asked for
    (tmp_path / "empty").mkdir()
    with pytest.raises(FilbertError, match="expected word vectors"):
        WordVectors(tmp_path / "empty")


def test_contractions_and_what_is_no_word_stay(masked: MaskedLanguageModel, vectors: WordVectors) -> None:
    text = "It doesn't work, I'll say: the film's abc123x is John's cold_1 plot"
    (found,) = replaceable_words([text], masked, vectors, CONFIG)
    assert {text[p.start : p.end] for p in found} <= {"work", "say", "film", "John", "plot"}
    assert {"film", "plot"} <= {text[p.start : p.end] for p in found}


def test_a_row_with_a_mask_of_its_own_is_left_as_it_is(masked: MaskedLanguageModel, vectors: WordVectors) -> None:
    assert replaceable_words(["the [MASK] film", "the film"], masked, vectors, CONFIG)[0] == []
    assert len(replaceable_words(["the [MASK] film", "the film"], masked, vectors, CONFIG)[1]) == 1


def test_byte_level_pieces_are_read_as_text() -> None:
    """As RoBERTa and GPT-2 spell: a mark where a word begins, a letter for each byte."""
    words = [
        *(f"Ġ{word}" for word in ("film", "plot", "voilÃł", "12", "good")),
        "ing",
        "ly",
        "<s>",
        "</s>",
        "<mask>",
        "<pad>",
    ]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    names = {"mask_token": "<mask>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    made = MaskedLanguageModel(
        BertForMaskedLM(BertConfig(**tiny_config().to_dict() | {"vocab_size": len(words)})),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names),
        CPU,
    )
    assert [word for word, is_word in zip(made.token_texts, made.is_word.tolist(), strict=True) if is_word] == [
        "film", "plot", "voilà", "good"
    ]  # fmt: skip


def test_a_large_task_is_not_augmented_nor_one_that_has_texts() -> None:
    task = replace(find_task("cola"), transfer=())
    limited = replace(CONFIG, max_rows=10)
    assert [limited.for_task(task, rows).variants for rows in (10, 11)] == [3, 0]
    assert CONFIG.for_task(task, 11).variants == 3
    given = replace(task, transfer=("imdb_reviews",))
    assert [replace(CONFIG, beside_texts=both).for_task(given, 11).variants for both in (True, False)] == [3, 0]
    assert CONFIG.for_task(replace(task, teacher_columns=("no", "yes")), 11).variants == 0  # of variants there are none
