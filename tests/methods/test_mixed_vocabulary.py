"""Mixed vocabularies: words as numbers, blocks of two vocabularies, what is hidden, two softmaxes, the student that comes of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import CPU, WORDS, find_task, sentences, tiny_config, tiny_tokenizer
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    PreTrainedTokenizerFast,
)

from filbert import FilbertError
from filbert.data import batches
from filbert.methods import mixed_vocabulary
from filbert.methods.mixed_vocabulary import MixedVocabularyModel, PretrainConfig, ShapeConfig
from filbert.models import checkpoints
from filbert.models.svd import low_rank_factors
from filbert.text import corpus
from filbert.text.corpus import CorpusError, WordTokens, pack_blocks
from filbert.text.masked_lm import MaskedLanguageModel, Vocabulary, mask_tokens
from filbert.text.vocabulary import new_vocabulary, translate_embeddings, vocabulary_overlap
from filbert.tracking.history import read_history
from filbert.tracking.run_recorder import RunRecorder
from filbert.training.loop import TrainingConfig

FIT = TrainingConfig(8, 8, 5e-3, 0.1, "linear", 0.0, 1.0, validations=2, patience=9)
CONFIG = PretrainConfig(60, 16, ShapeConfig(1, 8, 2, 16), "random", 0.5, None, FIT, False, FIT)
SHORT = replace(FIT, epochs=0.5, validations=1)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [" ".join(text for text, _ in sentences(6, seed)) for seed in range(60)]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> corpus.Corpus:
    file = tmp_path_factory.mktemp("corpus") / "corpus.arrow"
    assert corpus.write_corpus(iter(texts), tiny_tokenizer(), file) == sum(len(text.split()) for text in texts)
    return corpus.read_corpus(file)


@pytest.fixture(scope="module")
def small(words: corpus.Corpus) -> PreTrainedTokenizerFast:
    return new_vocabulary(words, 60, tiny_tokenizer(), 16)


@pytest.mark.parametrize(("count", "most", "taken"), [(10, None, 10), (10, 3, 3), (3, 10, 3), (25, 5, 5), (1, 1, 1)])
def test_a_part_of_the_texts_is_evenly_spaced(count: int, most: int | None, taken: int) -> None:
    found = [int(text) for text in corpus.sample_evenly(lambda: map(str, range(count)), most)]
    assert len(found) == taken
    assert max(np.diff(found), default=1) - min(np.diff(found), default=1) <= 1


def test_words_come_back_as_they_went(words: corpus.Corpus, texts: list[str]) -> None:
    every = np.arange(len(texts))
    assert [words.words[i] for i in words.select(every == 3).text] == texts[3].split()
    assert len(words.ends) == len(texts)
    assert len(set(words.words)) == len(words.words)
    part = words.select(every % 7 == 2)
    assert [words.words[i] for i in part.text[part.ends[0] : part.ends[1]]] == texts[9].split()


def test_the_vocabulary_is_trained_and_cuts_as_transformers_does(
    small: PreTrainedTokenizerFast, words: corpus.Corpus, texts: list[str]
) -> None:
    assert len(small) == 60
    assert 0 < vocabulary_overlap(small, tiny_tokenizer()) < 1
    assert vocabulary_overlap(small, small) == 1
    assert new_vocabulary(words, 60, tiny_tokenizer(), 16).get_vocab() == small.get_vocab()
    rows = pack_blocks(words, [WordTokens(words.words, small)], 0.0, 16, 0)
    inner = rows.ids.reshape(-1, 16)[:, 1:-1].ravel().tolist()
    theirs = [i for text in texts for i in small(text, add_special_tokens=False)["input_ids"]]
    assert inner == theirs[: len(inner)]
    assert len(theirs) - len(inner) < 14
    assert small(texts[0], texts[1])["input_ids"].count(small.sep_token_id) == 2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_blocks_mix_words_of_two_vocabularies(
    words: corpus.Corpus, small: PreTrainedTokenizerFast, share: float
) -> None:
    """Each word is whole, by the one or by the other; the same draw gives the same blocks."""
    teacher = tiny_tokenizer()
    by = [WordTokens(words.words, teacher), WordTokens(words.words, small)]
    rows = pack_blocks(words, by, share, 16, 7)
    ids = rows.ids.reshape(-1, 16).astype(int)
    second = ids >= len(teacher)
    begins = rows.word.reshape(-1, 16)[:, 1:-1] >= 0
    assert second[:, 1:-1][begins].mean() == pytest.approx(share, abs=0.05)
    assert (rows.ids == pack_blocks(words, by, share, 16, 7).ids).all()
    spelled = []
    for row, of_second, word in zip(ids, second, rows.word.reshape(-1, 16), strict=True):
        for i in range(1, 15):
            cut, first = (small, len(teacher)) if of_second[i] else (teacher, 0)
            token = cut.convert_ids_to_tokens(int(row[i]) - first)
            if word[i] >= 0 and not (i == 1 and token.startswith("##")):
                spelled.append("")
            else:
                assert of_second[i] == of_second[i - 1] or i == 1  # a word is of one vocabulary
            if spelled:
                spelled[-1] += token.removeprefix("##")
    original = [words.words[i] for i in words.text]
    known = [(a, b) for a, b in zip(spelled, original, strict=False) if "[UNK]" not in a]
    assert len(known) > 100
    assert sum(a == b for a, b in known) > 0.9 * len(known) or share not in (0.0, 1.0)


def test_whole_words_are_hidden_and_told_apart(words: corpus.Corpus, small: PreTrainedTokenizerFast) -> None:
    teacher = tiny_tokenizer()
    both = (Vocabulary.of(teacher), Vocabulary.of(small))
    rows = pack_blocks(words, [WordTokens(words.words, teacher), WordTokens(words.words, small)], 0.5, 16, 7)
    torch.manual_seed(0)
    hidden = replaced = total = 0
    for start in range(0, len(rows) - 8, 8):
        batch = rows.batch(np.arange(start, start + 8))
        ids, at = mask_tokens(batch, both)
        number = (batch.word >= 0).cumsum(1)
        for row in range(8):
            for word in set(number[row, 1:-1].tolist()):
                of_word = at[row, 1:-1][number[row, 1:-1] == word]
                assert of_word.all() or not of_word.any()
        assert not at[:, 0].any()
        assert not at[:, -1].any()
        assert at.any(1).all()
        assert (ids[~at] == batch.ids[~at]).all()
        assert ((ids >= len(teacher)) == (batch.ids >= len(teacher))).all()  # each in its own vocabulary
        masks = torch.where(batch.ids >= len(teacher), len(teacher) + small.mask_token_id, teacher.mask_token_id)
        hidden, replaced = hidden + int((ids == masks)[at].sum()), replaced + int((ids != masks)[at].sum())
        total += int(batch.mask.sum())
    assert hidden / (hidden + replaced) == pytest.approx(0.8, abs=0.06)
    assert (hidden + replaced) / total == pytest.approx(0.15, abs=0.05)


def test_the_loss_is_that_of_two_softmaxes(words: corpus.Corpus, small: PreTrainedTokenizerFast) -> None:
    teacher = tiny_tokenizer()
    torch.manual_seed(2)
    mixed = MixedVocabularyModel(
        BertForMaskedLM(tiny_config(initializer_range=0.5)), (Vocabulary.of(teacher), Vocabulary.of(small)), 4
    ).eval()
    batch = pack_blocks(words, [WordTokens(words.words, teacher), WordTokens(words.words, small)], 0.5, 16, 7).batch(
        np.arange(4)
    )
    torch.manual_seed(9)
    loss = mixed.loss(batch)
    torch.manual_seed(9)
    ids, at = mask_tokens(batch, mixed.vocabularies)
    states = mixed(ids, batch.mask)
    theirs, ours = [], []
    for row, place in at.nonzero().tolist():
        read = mixed.teacher.cls.predictions.transform(states[row, place])
        true = int(batch.ids[row, place])
        if true >= len(teacher):
            table = mixed.small.weight @ mixed.up.weight.T + mixed.up.bias
            ours.append(F.cross_entropy((table @ read + mixed.bias)[None], torch.tensor([true - len(teacher)])))
        else:
            theirs.append(F.cross_entropy(mixed.teacher.cls.predictions.decoder(read)[None], torch.tensor([true])))
    assert ours
    assert theirs
    assert loss.item() == pytest.approx(torch.stack(ours + theirs).mean().item(), rel=1e-4)
    plain = batch.ids.clamp_max(len(teacher) - 1)
    direct = mixed.teacher.bert(input_ids=plain, attention_mask=batch.mask).last_hidden_state
    assert torch.allclose(
        mixed(plain, batch.mask), direct, atol=1e-5
    )  # of the teacher's tokens alone it is the teacher


def test_small_embeddings_may_start_as_the_teachers(small: PreTrainedTokenizerFast) -> None:
    """With as many numbers as the teacher's they say the same: of tokens that both have, its states are the teacher's."""
    teacher = tiny_tokenizer()
    torch.manual_seed(3)
    bert = BertForMaskedLM(tiny_config(initializer_range=0.5)).eval()
    table = bert.get_input_embeddings().weight.detach()
    mixed = MixedVocabularyModel(bert, (Vocabulary.of(teacher), Vocabulary.of(small)), table.shape[1]).eval()
    ours = translate_embeddings(small, teacher, table)
    mixed.start_at(low_rank_factors(ours, table.shape[1])[0], ours)
    shared = sorted(set(small.get_vocab()) & set(teacher.get_vocab()))
    ids = torch.tensor([[teacher.get_vocab()[token] for token in shared]])
    read = torch.tensor([[len(teacher) + small.get_vocab()[token] for token in shared]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert len(shared) > 10
    assert torch.allclose(mixed(read, mask), mixed(ids, mask), atol=1e-4)
    alone = sorted(set(small.get_vocab()) - set(shared))
    assert alone
    for token in alone:
        cut = teacher.convert_tokens_to_ids(teacher.tokenize(token.removeprefix("##")))
        assert torch.allclose(ours[small.get_vocab()[token]], table[cut].mean(0), atol=1e-6)
    with pytest.raises(FilbertError, match="expected a rank of at most"):
        low_rank_factors(ours, 99)
    few = [0, 1, 4, 5, 9]  # numbers of each state: the map up gives them back, and the others as nearly as it can
    mixed = MixedVocabularyModel(bert, mixed.vocabularies, len(few)).eval()
    mixed.start_at(ours[:, few], ours)
    with torch.inference_mode():
        back = mixed.up(mixed.small.weight)
    assert torch.allclose(back[:, few], ours[:, few], atol=1e-4)
    assert (back - ours).square().mean() < (ours - ours.mean(0)).square().mean() * (1 - 4 / table.shape[1])


def test_a_student_is_pretrained_and_is_plain_bert(
    words: corpus.Corpus, tmp_path: Path, recorder: RunRecorder, checkpoint: Path
) -> None:
    student, tokenizer = mixed_vocabulary.pretrain(
        words, checkpoint, tiny_tokenizer(), CONFIG, 0, CPU, tmp_path / "scratch", recorder
    )
    checkpoints.save_with_provenance(student, tokenizer, tmp_path / "student", recorder)
    losses: dict[str, list[float]] = {}
    for line in read_history(recorder.history):
        if "loss" in line:
            losses.setdefault(line["phase"], []).append(line["loss"])
    assert set(losses) == {"align", "pretrain"}
    for found in losses.values():
        assert np.mean(found[-3:]) < 0.95 * found[0]
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "student")) is BertForMaskedLM
    assert len(AutoTokenizer.from_pretrained(tmp_path / "student")) == 60
    made = checkpoints.new_student(
        tmp_path / "student", find_task("sst2"), checkpoints.all_layers(tmp_path / "student")
    )
    body = BertModel.from_pretrained(tmp_path / "student", add_pooling_layer=False).state_dict()
    ours = {name.removeprefix("bert."): value for name, value in made.state_dict().items()}
    assert all(torch.equal(ours[name], value) for name, value in body.items() if name in ours)


def test_the_baselines_differ_in_what_they_start_from(
    words: corpus.Corpus, tmp_path: Path, recorder: RunRecorder, checkpoint: Path
) -> None:
    brief = replace(CONFIG, align=SHORT, training=SHORT)

    def start(name: str, config: PretrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
        still = replace(config, training=replace(SHORT, learning_rate=1e-12))
        made, _ = mixed_vocabulary.pretrain(
            words, checkpoint, tiny_tokenizer(), still, 0, CPU, tmp_path / name, recorder
        )
        return made.get_input_embeddings().weight.detach(), made.bert.encoder.layer[0].output.dense.weight.detach()

    mixed, of_mixed = start("mixed", brief)
    nokd, of_nokd = start("nokd", replace(brief, align=None))
    assert torch.allclose(of_mixed, of_nokd)  # all but the embeddings is the same draw
    assert not torch.allclose(mixed, nokd, atol=1e-3)
    none, _ = start("zero", replace(brief, student_vocab_probability=0.0))
    assert not torch.allclose(mixed, none, atol=1e-3)
    near, of_near = start("near", replace(brief, start="svd", align=None))
    assert torch.allclose(of_near, of_nokd)
    assert not torch.allclose(near, nokd, atol=1e-3)
    part = replace(brief, start="subclone", align=None)
    cloned, of_cloned = start("cloned", part)
    theirs = AutoModelForMaskedLM.from_pretrained(checkpoint).bert.encoder.layer[0].output.dense.weight.detach()
    assert np.isin(of_cloned.numpy().round(6), theirs.numpy().round(6)).all()
    assert not torch.allclose(cloned, near, atol=1e-3)
    _, of_after = start("after", replace(brief, start="subclone"))
    assert not torch.allclose(of_after, of_cloned, atol=1e-3)  # of the checkpoint as stage I left it
    frozen = replace(brief, freeze_embeddings=True)
    made, _ = mixed_vocabulary.pretrain(
        words, checkpoint, tiny_tokenizer(), frozen, 0, CPU, tmp_path / "frozen", recorder
    )
    assert torch.allclose(made.get_input_embeddings().weight, mixed, atol=1e-6)


def test_the_head_is_trained_before_stage_one_on_a_frozen_body(
    words: corpus.Corpus, tmp_path: Path, recorder: RunRecorder, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage I begins with the checkpoint's body, a head that knows it, and the output bias of both vocabularies."""
    begun: dict[str, float] = {}
    seen: list[MixedVocabularyModel] = []

    def fit(model: torch.nn.Module, loss: object, rows: object, held: batches.TokenizedDataset, *rest: object) -> None:
        if isinstance(model, MixedVocabularyModel):
            seen.append(model)
            with torch.inference_mode():
                begun[str(len(seen))] = float(model.eval().loss(held.batch(np.arange(len(held)))))

    monkeypatch.setattr(mixed_vocabulary, "_fit", fit)
    for config in (CONFIG, replace(CONFIG, head=FIT)):
        mixed_vocabulary.pretrain(words, checkpoint, tiny_tokenizer(), config, 0, CPU, tmp_path / "s", recorder)
    fresh, trained = seen
    assert begun["2"] < begun["1"] - 0.2
    body = trained.teacher.base_model.state_dict()
    assert all(torch.equal(value, body[name]) for name, value in fresh.teacher.base_model.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.teacher.parameters())
    assert trained.bias.std() > 0


def test_few_held_out_blocks_measure_the_loss(words: corpus.Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pack_blocks(words, [WordTokens(words.words, tiny_tokenizer())], 0.0, 16, 0)
    monkeypatch.setattr(mixed_vocabulary, "HELD_OUT_BLOCKS", 5)
    assert len(mixed_vocabulary._first(rows)) == 5
    assert len(mixed_vocabulary._first(rows.select(np.arange(3)))) == 3


@pytest.mark.parametrize(("layers", "width", "millions"), [(12, 256, 10.94), (6, 256, 6.20), (12, 128, 3.09)])
def test_shapes_of_the_paper(layers: int, width: int, millions: float) -> None:
    """With 4,928 tokens, four heads of the width, four times the width between, and 512 positions."""
    shape = BertConfig(
        vocab_size=4928, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=4 * width
    )
    assert sum(p.numel() for p in BertModel(shape).parameters()) / 1e6 == pytest.approx(millions, abs=0.02)


def test_another_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    from tiny import sentence_piece

    with pytest.raises(CorpusError, match=r"expected a WordPiece tokenizer.* got Unigram"):
        corpus.write_corpus(iter(["a"]), sentence_piece(), tmp_path / "corpus.arrow")
    few = corpus.Corpus(["the"], np.zeros(3, np.uint32), np.array([3]))
    with pytest.raises(CorpusError, match="the corpus has 3 tokens"):
        pack_blocks(few, [WordTokens(few.words, tiny_tokenizer())], 0.0, 16, 0)


def test_masked_models_hide_pieces_where_words_are_not_known(encoded: batches.TokenizedDataset) -> None:
    model = MaskedLanguageModel(BertForMaskedLM(tiny_config()), tiny_tokenizer(), CPU)
    assert encoded.word is None
    assert 0 < model.loss(encoded.batch(np.arange(8))).item() < 2 * np.log(len(WORDS) + 5)


def test_the_student_starts_from_what_stage_one_left(
    words: corpus.Corpus, tmp_path: Path, recorder: RunRecorder, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that moves to an accelerator gets other tensors: what was read before it moved is not what was trained."""

    def fit(model: torch.nn.Module, *rest: object) -> None:
        if isinstance(model, MixedVocabularyModel):
            model.small.weight.data = torch.full_like(model.small.weight.data, 0.25)

    monkeypatch.setattr(mixed_vocabulary, "_fit", fit)
    made, _ = mixed_vocabulary.pretrain(words, checkpoint, tiny_tokenizer(), CONFIG, 0, CPU, tmp_path, recorder)
    assert (made.get_input_embeddings().weight == 0.25).all()
