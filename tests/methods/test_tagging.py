"""Tagged rows through the whole chain: CoNLL files, words and their tokens, entity F1, cached words of each token, students."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score
from tiny import CPU, find_task, sentence_piece, tiny_config, tiny_tokenizer, word_tags, write_conll
from transformers import AutoModelForTokenClassification, BertForTokenClassification, BertModel

from filbert import FilbertError
from filbert.cache import build, teacher_cache
from filbert.data import arrow, batches, row_validation, splits
from filbert.data.sources import Source, fetch_task
from filbert.evaluation import metrics
from filbert.methods import finetune, kd, rosita, theseus, xtremedistil
from filbert.methods.context import MethodContext
from filbert.methods.xtremedistil import WeightsConfig
from filbert.models import checkpoints
from filbert.models.bert import FilbertForTokenClassification
from filbert.models.width_allocation import TargetConfig
from filbert.tracking.history import read_history
from filbert.tracking.run_recorder import RunRecorder
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig

TASK = replace(find_task("wikiann"), languages=("en", "de"))
FIT = TrainingConfig(4, 8, 5e-3, 0.0, "cosine", 0.0, 1.0, validations=2, patience=2)
ENCODE = batches.TokenizerConfig(16)
XTREMEDISTIL = xtremedistil.Config(
    xtremedistil.ShapeConfig(8, 6, "last", 0.0, "svd", "siamese", "gelu"),
    "stages",
    True,
    True,
    True,
    FIT,
    FIT,
    FIT,
    WeightsConfig(1, 1, 1),
)
PRUNING = rosita.IterativeConfig(0.5, None, 0, True, FIT)
PREDICTION = rosita.PredictionConfig("teacher", 2.0, 0.7, "label")
ROSITA = rosita.Config(
    4, True, None, 0.5, PREDICTION, TargetConfig(1, 4, 2, 8, None, None), FIT, FIT, PRUNING, PRUNING, FIT, FIT
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> splits.Prepared:
    folder = tmp_path_factory.mktemp("wikiann")
    for seed, language in enumerate(TASK.languages):
        write_conll(folder / "source", language, 60, seed)
    fetch_task(Source("folder", str(folder / "source"), None, "", None), TASK, folder / "raw")
    assert {f"{name}_{language}.txt" for name in ("train", "dev") for language in TASK.languages} <= {
        path.name for path in (folder / "raw").iterdir()
    }
    return splits.prepare(folder / "raw", TASK, splits.PrepareConfig(0.2, 0.1, 1000, 0))


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger")
    torch.manual_seed(1)
    named = {"id2label": dict(enumerate(TASK.labels)), "label2id": {name: i for i, name in enumerate(TASK.labels)}}
    BertForTokenClassification(tiny_config(initializer_range=0.5, **named)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def context(
    tmp_path: Path, prepared: splits.Prepared, tagger: Path, checkpoint: Path, recorder: RunRecorder
) -> MethodContext:
    split = {name: batches.tokenize(table, TASK, tiny_tokenizer(), ENCODE) for name, table in prepared.tables.items()}
    config = teacher_cache.CacheConfig("float16", batch_size=8, shard_mb=1, budget_gb=1, verify_rows=8, tolerance=0.05)
    key, columns = (
        teacher_cache.cache_fingerprint(tagger, ENCODE, config, CPU),
        ("tags", "tagged", "hidden.0", "hidden.2"),
    )
    build.build_cache(tmp_path / "cache", checkpoints.load_model(tagger), prepared.tables["train"],
              lambda table: batches.tokenize(table, TASK, tiny_tokenizer(), ENCODE), columns, key, config, CPU)  # fmt: skip
    opened = teacher_cache.TeacherCache([tmp_path / "cache"], key)
    opened.verify(split["train"].select(np.arange(8)), columns, checkpoints.load_model(tagger), config, CPU)
    return MethodContext(
        TASK, split["train"], split["validation"], split["train"].select(np.arange(0)), checkpoint, tagger,
        checkpoints.StudentConfig((0,)), LayerMap(1, 2), opened, config, tmp_path, None, 1, CPU, tmp_path / ".scratch" / "study",
        recorder,
    )  # fmt: skip


def test_languages_are_one_training_set_and_a_test_each(prepared: splits.Prepared) -> None:
    assert set(prepared.tables) == {"train", "validation", "test_en", "test_de"}
    train = prepared.tables["train"]
    assert len(set(train["idx"].to_pylist())) == len(train) > 70
    for text, label in zip(train["sentence"].to_pylist(), train["label"].to_pylist(), strict=True):
        assert [TASK.labels[tag] for tag in label] == word_tags(text.split())
        assert ":" not in text
    assert arrow.rows_digest(train) != arrow.rows_digest(train.slice(1))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("en:a\tO\nen:dog\n\n", "line 2: expected a word and its tag, got 'en:dog'"),
        ("en:a\tO\n\nen:dog\tB-PET\n\n", "line 3, word 1: expected a tag out of O, B-PER, I-PER, .*, got 'B-PET'"),
        ("en:a\tO\nen:dog\tI-PER\n\n", "line 1, word 2: I-PER follows O: in IOB2 an entity begins with B-PER"),
        ("en:a\tB-LOC\nen:dog\tI-PER\n", "line 1, word 2: I-PER follows B-LOC"),
        ("en:\xa0\tO\n", "line 1"),
    ],
)
def test_a_broken_sentence_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "train_en.txt").write_text(text)
    with pytest.raises(row_validation.RowError, match=said):
        list(row_validation.read_rows(tmp_path, "train_en", TASK))


def test_sentences_are_read_as_conll_has_them(tmp_path: Path) -> None:
    """Empty lines in a row, no last newline, columns by spaces with the tag last, a document mark, a space within a word."""
    text = "-DOCSTART- O\n\n\nthe NN O\ncat NN B-PER\n\n\n\nNew\xa0York\tB-LOC\nlong\tI-LOC"
    (tmp_path / "train.conll").write_text(text)
    found = list(row_validation.read_rows(tmp_path, "train", replace(TASK, languages=())))
    assert [(row["sentence"], [TASK.labels[tag] for tag in row["label"]]) for row in found] == [
        ("the cat", ["O", "B-PER"]), ("NewYork long", ["B-LOC", "I-LOC"])
    ]  # fmt: skip
    assert not list(row_validation.read_rows(_empty(tmp_path), "train", replace(TASK, languages=())))


def _empty(folder: Path) -> Path:
    (folder / "train.conll").write_text("\n\n")
    return folder


def test_lists_of_words_and_tags_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"tokens": ["the", "cat"], "ner_tags": [0, 1]}\n')
    (row,) = row_validation.read_rows(tmp_path, "train", replace(TASK, languages=()))
    assert (row["sentence"], row["label"]) == ("the cat", (0, 1))
    (tmp_path / "train.jsonl").write_text('{"tokens": ["the", "cat"], "ner_tags": [0]}\n')
    with pytest.raises(row_validation.RowError, match="expected words and as many tags"):
        list(row_validation.read_rows(tmp_path, "train", replace(TASK, languages=())))
    (tmp_path / "train.jsonl").write_text('{"tokens": [], "ner_tags": []}\n{"tokens": ["a"], "ner_tags": [0]}\n')
    assert [row["idx"] for row in row_validation.read_rows(tmp_path, "train", replace(TASK, languages=()))] == [1]
    (tmp_path / "train.jsonl").write_text('{"tokens": ["the", "cat"], "ner_tags": [5, -1]}\n')
    with pytest.raises(row_validation.RowError, match=r"word 2: expected a tag out of .*, got '-1'"):
        list(row_validation.read_rows(tmp_path, "train", replace(TASK, languages=())))


@pytest.mark.parametrize("make", [tiny_tokenizer, sentence_piece])
def test_a_tag_is_at_the_first_piece_of_its_word(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "train.conll").write_text("the\tO\ncats\tB-PER\nlong\tI-PER\nand\tO\ndogs\tB-LOC\n")
    table = _table(tmp_path)
    encoded = batches.tokenize(table, TASK, make(), ENCODE)
    batch = encoded.batch(np.array([0]))
    tokens = make().convert_ids_to_tokens(batch.ids[0].tolist())
    at = {int(label): token for label, token in zip(batch.label[0], tokens, strict=True) if label > 0}
    assert {TASK.labels[tag]: token.strip("▁#") for tag, token in at.items()}.keys() == {"B-PER", "I-PER", "B-LOC"}
    assert (batch.label >= 0).sum() == 5
    assert batch.label[0, 0] == batch.label[0, -1] == -1
    cut = batches.tokenize(table, TASK, make(), batches.TokenizerConfig(5)).batch(np.array([0]))
    assert 1 <= (cut.label >= 0).sum() < 5


def _table(folder: Path):  # type: ignore[no-untyped-def]
    import pyarrow as pa

    found = list(row_validation.read_rows(folder, "train", replace(TASK, languages=())))
    return pa.Table.from_pylist(found, schema=arrow.row_schema(TASK))


def test_entity_f1_is_seqevals(prepared: splits.Prepared) -> None:
    """On random tags, ill-formed ones among them; words that were cut off count as no entity."""
    draw = np.random.default_rng(0)
    table = prepared.tables["train"]
    for length in (16, 6):
        encoded = batches.tokenize(table, TASK, tiny_tokenizer(), batches.TokenizerConfig(length))
        for share in (0.0, 0.3, 1.0):
            guess = np.where(
                draw.random(len(encoded.label)) < share, draw.integers(0, 7, len(encoded.label)), encoded.label
            )
            logits = np.zeros((len(encoded.ids), 7), np.float32)
            row = np.repeat(np.arange(len(encoded)), encoded.lengths)
            at = encoded.tags[row] + encoded.word
            logits[np.arange(len(at)), np.where(encoded.word >= 0, guess[np.minimum(at, len(guess) - 1)], 3)] = 1
            seen = np.zeros(len(guess), bool)
            seen[at[encoded.word >= 0]] = True
            split = [slice(a, b) for a, b in zip(encoded.tags[:-1], encoded.tags[1:], strict=True)]
            theirs = f1_score(
                [[TASK.labels[tag] for tag in encoded.label[part]] for part in split],
                [[TASK.labels[tag] for tag in np.where(seen, guess, 0)[part]] for part in split],
            )
            found = metrics.scores_on(TASK, logits, encoded)
            assert found["score"] == pytest.approx(theirs, abs=1e-9)
            assert (found["score"] == 1.0) == (share == 0.0 and length == 16)


def test_logits_come_back_row_by_row(context: MethodContext) -> None:
    model = checkpoints.load_model(context.teacher)
    found = checkpoints.predict_logits(model, context.train, 7, CPU)
    assert found.shape == (len(context.train.ids), 7)
    for i in (0, 5, len(context.train) - 1):
        alone = checkpoints.forward_batch(model, context.train.batch(np.array([i]))).logits[0].detach().numpy()
        np.testing.assert_allclose(found[context.train.offsets[i] : context.train.offsets[i + 1]], alone, atol=1e-5)
    said = context.with_targets(["logits", "pooled"]).batch(np.array([5, 0]))
    live = checkpoints.forward_batch(model, said, states=True)
    real = said.mask
    assert torch.allclose(said.targets["logits"][real], live.logits[real].float(), atol=0.2)
    assert torch.allclose(said.targets["pooled"][real].float(), live.hidden_states[-1][real], atol=0.2)


def test_part_and_joined_keep_tags_with_their_rows(context: MethodContext) -> None:
    order = np.array([7, 2, 11])
    part = context.train.select(order)
    both = batches.concatenate(part, context.train.select(np.array([3])))
    for i, row in enumerate([*order, 3]):
        one, other = both.batch(np.array([i])), context.train.batch(np.array([row]))
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.label, other.label)


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (finetune, finetune.Config(FIT)),
        (kd, kd.Config(1.0, 0.5, 1.0, False, 0.0, FIT)),
        (theseus, theseus.Config("curriculum", 0.5, 0.5, "bottom", False, FIT)),
        (xtremedistil, XTREMEDISTIL),
        (xtremedistil, replace(XTREMEDISTIL, objective="hard")),
        (rosita, ROSITA),
    ],
)
def test_students_tag_and_load_as_transformers_own(context: MethodContext, tmp_path: Path, method, config) -> None:  # type: ignore[no-untyped-def]
    student = method.compress(context, config).eval()
    best = [line["best"] for line in read_history(context.recorder.history) if "best" in line]
    assert best
    checkpoints.save(student, tiny_tokenizer(), tmp_path / "student")
    again = checkpoints.load_model(tmp_path / "student")
    batch = context.train.batch(np.arange(3))
    with torch.no_grad():
        ours, theirs = checkpoints.forward_batch(student, batch).logits, checkpoints.forward_batch(again, batch).logits
    assert ours.shape == (*batch.ids.shape, 7)
    assert torch.allclose(ours[batch.mask], theirs[batch.mask], atol=1e-5)
    assert again.config.id2label[1] == "B-PER"
    if method in (finetune, kd, theseus):
        plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "student")
        assert type(plain) is BertForTokenClassification


def test_a_student_learns_to_tag(context: MethodContext) -> None:
    long = replace(FIT, epochs=40, learning_rate=1e-2)
    student = finetune.compress(context, finetune.Config(long))
    found = metrics.scores_on(TASK, checkpoints.predict_logits(student, context.validation, 8, CPU), context.validation)
    assert found["entity_f1"] > 0.9


def test_the_teacher_is_any_tagger_and_references_are_refused(checkpoint: Path, context: MethodContext) -> None:
    assert isinstance(checkpoints.new_teacher(checkpoint, TASK), FilbertForTokenClassification)
    assert isinstance(BertModel.from_pretrained(checkpoint), BertModel)
    from filbert.models.reference_bert import ReferenceForSequenceClassification

    with pytest.raises(FilbertError, match="has no head for rows of kind tagging"):
        context.new_student_of_class(ReferenceForSequenceClassification, reference_size=16)
