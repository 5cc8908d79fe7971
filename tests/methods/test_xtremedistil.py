"""BiLSTM students: the architecture, its start, the order of thawing, the stages, and the face to transformers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import find_task, load_without_filbert, sentences, student_logits, tiny_config, tiny_tokenizer
from transformers import BertModel

from filbert import FilbertError
from filbert.data import arrow, batches, splits
from filbert.methods import kd, xtremedistil
from filbert.methods.context import MethodContext
from filbert.methods.xtremedistil import (
    Config,
    ShapeConfig,
    WeightsConfig,
    _new_head,
    hard_loss,
    joint_loss,
    new_bilstm,
    representation_loss,
    unfreeze,
)
from filbert.models import checkpoints, size
from filbert.text.transfer import to_rows
from filbert.tracking.history import read_history
from filbert.training.loop import TrainingConfig, _schedule, mean_loss

FIT = TrainingConfig(2, 8, 3e-3, 0.0, "cosine", 0.0, 1.0, validations=2, patience=2)
SHAPE = ShapeConfig(
    embedding=8, lstm=6, pooling="last", dropout=0.0, embedding_init="svd", pairs="siamese", activation="gelu"
)
CONFIG = Config(
    SHAPE, "stages", True, True, True, representation=replace(FIT, epochs=6), logits=FIT, labels=FIT,
    weights=WeightsConfig(1.0, 1.0, 1.0),
)  # fmt: skip
TASK = find_task("sst2")


@pytest.fixture
def with_transfer(context: MethodContext, prepared: splits.Prepared) -> MethodContext:
    """A context with transfer rows, whose cache holds what the teacher's head reads of all rows."""
    known = {text for table in prepared.tables.values() for text in table["sentence"].to_pylist()}
    texts = [text for text, _ in sentences(200, seed=5) if text not in known][:40]
    table = pa.Table.from_pylist(list(to_rows(((text,) for text in texts), TASK)), schema=arrow.row_schema(TASK))
    context = replace(context, transfer=batches.tokenize(table, TASK, tiny_tokenizer(), batches.TokenizerConfig(16)))
    said = context.with_transfer().cache_predictions(checkpoints.load_model(context.teacher), ("logits", "pooled"))
    return replace(context, cache=said)


@pytest.mark.parametrize("pooling", ["last", "max"])
def test_padding_does_not_count(with_transfer: MethodContext, pooling: str) -> None:
    student = new_bilstm(with_transfer, replace(SHAPE, pooling=pooling)).eval()
    batch = with_transfer.train.batch(np.arange(6))
    with torch.no_grad():
        together = checkpoints.forward_batch(student, batch).logits
        alone = [checkpoints.forward_batch(student, with_transfer.train.batch(np.array([i]))).logits for i in range(6)]
        wide = batches.replace(
            batch,
            ids=torch.nn.functional.pad(batch.ids, (0, 9), value=7),
            mask=torch.nn.functional.pad(batch.mask, (0, 9)),
        )
        assert torch.allclose(checkpoints.forward_batch(student, wide).logits, together, atol=1e-6)
    assert torch.allclose(torch.cat(alone), together, atol=1e-6)


def test_the_embedding_is_the_best_of_its_rank_for_the_pieces_seen(with_transfer: MethodContext) -> None:
    """Products of any two tokens are those of the teacher's table, as far as rank 8 can tell them; others share a row."""
    student = new_bilstm(with_transfer, SHAPE)
    table = checkpoints.load_model(with_transfer.teacher).get_input_embeddings().weight.detach()
    seen = torch.from_numpy(np.unique(with_transfer.with_transfer().train.ids).astype(np.int64))
    assert student.config.kept_vocab_size == len(seen) + 1
    mine = student.embedding.weight[student.rows[seen].long()]
    s = torch.linalg.svdvals(table[seen])
    mine = mine.detach()
    assert float((mine.square().sum() / s.square().sum()).sqrt()) == pytest.approx(
        float((s[:8].square().sum() / s.square().sum()).sqrt()), rel=1e-4
    )
    gram = table[seen] @ table[seen].T
    error = torch.linalg.matrix_norm(mine @ mine.T - gram, 2)
    assert float(error) == pytest.approx(float(s[8] ** 2), rel=1e-3)
    unseen = sorted(set(range(len(table))) - set(seen.tolist()))
    assert not student.rows[unseen].any()
    with pytest.raises(FilbertError, match=r"a rank of at most 16.* got 17"):
        new_bilstm(with_transfer, replace(SHAPE, embedding=17))


def test_parts_thaw_from_the_top(with_transfer: MethodContext) -> None:
    student = new_bilstm(with_transfer, SHAPE)
    found = [
        (name, {n.split(".")[0] for n, p in student.named_parameters() if p.requires_grad})
        for name in unfreeze(student, True)
    ]
    assert found == [
        ("head", {"classifier"}),
        ("dense", {"classifier", "dense"}),
        ("lstm", {"classifier", "dense", "lstm"}),
        ("embedding", {"classifier", "dense", "lstm", "embedding"}),
    ]
    assert list(unfreeze(student, False)) == ["all"]
    assert all(parameter.requires_grad for parameter in student.parameters())


@pytest.mark.parametrize("start", ["xtremedistil", "theseus"])
def test_tokens_of_another_vocabulary_are_refused(with_transfer: MethodContext, tmp_path: Path, start: str) -> None:
    """Their numbers would be looked up in the teacher's embeddings."""
    other = batches.load_tokenizer(with_transfer.teacher)
    other.add_tokens(["another"])
    other.save_pretrained(tmp_path)
    context = replace(with_transfer, checkpoint=tmp_path, start=tmp_path)
    make = {"xtremedistil": lambda: new_bilstm(context, SHAPE), "theseus": lambda: context.cut_from_teacher(range(2))}
    with pytest.raises(FilbertError, match="expected the teacher's vocabulary, for this method reads the teacher's"):
        make[start]()


def test_the_cosine_falls_to_nothing() -> None:
    fit = replace(FIT, warmup=0.1)
    assert [_schedule(step, 110, fit) for step in (0, 10, 11, 110)] == pytest.approx([1 / 11, 1.0, 1.0, 0.0])
    assert _schedule(11 + 99 // 2, 110, fit) == pytest.approx(0.5, abs=0.02)


def test_stages_come_in_order_and_the_student_learns(
    with_transfer: MethodContext, tmp_path: Path, python: Path
) -> None:
    learnt = with_transfer.with_transfer().with_targets(["pooled"])
    fresh = new_bilstm(with_transfer, SHAPE)
    before = mean_loss(fresh, representation_loss(fresh, with_transfer), learnt, with_transfer.device)
    student = xtremedistil.compress(with_transfer, CONFIG)
    phases = list(dict.fromkeys(line["phase"] for line in read_history(with_transfer.recorder.history)))
    parts = ("head", "dense", "lstm", "embedding")
    assert phases == ["representation", *(f"logits-{p}" for p in parts), *(f"labels-{p}" for p in parts)]
    best = [line["best"] for line in read_history(with_transfer.recorder.history) if "best" in line]
    assert -best[0] < before
    checkpoints.save(student, tiny_tokenizer(), tmp_path / "student")
    assert student_logits(checkpoints.load_model(tmp_path / "student")) == pytest.approx(
        np.array(student_logits(student)), abs=1e-6
    )
    said = load_without_filbert(python, tmp_path / "student", "trust", tmp_path)
    torch.testing.assert_close(torch.tensor(said["logits"]), torch.tensor(student_logits(student)))


def test_the_head_of_stage_three_is_new(with_transfer: MethodContext) -> None:
    student = new_bilstm(with_transfer, SHAPE)
    before = student.classifier.weight.detach().clone()
    _new_head(student, 9)
    assert not torch.equal(student.classifier.weight, before)


def test_multiply_adds_of_an_lstm_are_counted(with_transfer: MethodContext) -> None:
    """4 gates, 2 directions: 8 H (E + H) a token; and the two linear layers of one row."""
    student, batch = new_bilstm(with_transfer, SHAPE), with_transfer.train.batch(np.array([0]))
    tokens = int(batch.mask.sum())
    assert size.multiply_adds(student, batch) == 8 * 6 * (8 + 6) * tokens + 12 * 16 + 16 * 2


def test_transfer_rows_have_words_and_no_label(with_transfer: MethodContext) -> None:
    """Their labels count for nothing, whatever a student says of them; the teacher's answers stand for them where asked."""
    wide = with_transfer.with_transfer()
    assert len(wide.train) == len(with_transfer.train) + len(with_transfer.transfer) == len(with_transfer.train) + 40
    assert len(wide.with_transfer().train) == len(wide.train)  # once is enough
    mixed = wide.with_targets(["logits", "pooled"])
    some = mixed.batch(np.array([0, len(wide.train) - 1]))
    assert some.label[1] == -1
    logits = torch.tensor([[2.0, -1.0], [9.0, -9.0]], requires_grad=True)
    loss = with_transfer.hard_loss(logits, some)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits[:1], some.label[:1]).item())
    loss.backward()
    assert not logits.grad[1].any()
    none = mixed.batch(np.arange(len(wide.train) - 4, len(wide.train)))
    assert with_transfer.hard_loss(logits[[0, 0, 1, 1]], none).item() == 0.0
    student = new_bilstm(with_transfer, SHAPE).eval()
    answers = some.targets["logits"].argmax(-1)
    wanted = torch.stack([some.label[0], answers[1]])
    assert float(hard_loss(student, with_transfer)(some)) == pytest.approx(
        float(torch.nn.functional.cross_entropy(checkpoints.forward_batch(student, some).logits, wanted)), rel=1e-5
    )
    weights = WeightsConfig(1.0, 0.0, 0.0)
    assert float(joint_loss(student, with_transfer, weights)(some)) == pytest.approx(
        float(with_transfer.hard_loss(checkpoints.forward_batch(student, some).logits, some)), rel=1e-5
    )


def test_nothing_is_learnt_of_labels_where_there_are_none(with_transfer: MethodContext) -> None:
    """A student of unlabelled text alone: the labels of the training rows do not reach it."""
    config = replace(CONFIG, learn_representation=False, representation=FIT, labels=None)
    other = replace(
        with_transfer,
        train=replace(with_transfer.train, label=1 - with_transfer.train.label),
        scratch=with_transfer.scratch / "other",
    )
    one, two = xtremedistil.compress(with_transfer, config), xtremedistil.compress(other, config)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


WHOLE = replace(  # no phase stops early
    CONFIG, representation=replace(FIT, epochs=1.5, patience=99), logits=replace(FIT, patience=99),
    labels=replace(FIT, epochs=1, patience=99),
)  # fmt: skip
CONTROLS = {
    "stages": WHOLE,
    "all layers at once": replace(WHOLE, unfreeze=False),
    "logits alone": replace(WHOLE, learn_representation=False),
    "labels": replace(WHOLE, objective="labels", shape=replace(SHAPE, embedding_init="checkpoint")),
    "hard": replace(WHOLE, objective="hard"),
    "joint": replace(WHOLE, objective="joint"),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_all_are_of_one_size_and_take_as_many_steps(with_transfer: MethodContext, control: str) -> None:
    """However many transfer rows there are: the steps of the stages on nine tenths of all rows and on the labelled ones."""
    student = xtremedistil.compress(with_transfer, CONTROLS[control])
    assert student.embedding.weight.shape == new_bilstm(with_transfer, SHAPE).embedding.weight.shape
    steps = sum(line["step"] for line in read_history(with_transfer.recorder.history) if "best" in line)
    everything, size = len(with_transfer.with_transfer().train), FIT.batch_size
    texts, labelled = -(-(everything - -(-everything // 10)) // size), -(-len(with_transfer.train) // size)
    assert abs(steps - (round(1.5 * texts) + 4 * 2 * texts + 4 * labelled)) <= 4  # stretched epochs are rounded


def test_a_control_without_a_teacher_starts_without_it(with_transfer: MethodContext, tmp_path: Path) -> None:
    ours = new_bilstm(with_transfer, replace(SHAPE, embedding_init="checkpoint")).embedding.weight
    assert not torch.equal(ours, new_bilstm(with_transfer, SHAPE).embedding.weight)
    untrained = checkpoints.new_teacher(with_transfer.checkpoint, with_transfer.task)
    checkpoints.save(untrained, tiny_tokenizer(), tmp_path / "untrained")
    other = replace(with_transfer, teacher=tmp_path / "untrained")
    assert torch.equal(ours, new_bilstm(other, SHAPE).embedding.weight)


@pytest.mark.parametrize("labelled", [0.0, 0.8])
def test_kd_gains_the_transfer_rows(with_transfer: MethodContext, labelled: float) -> None:
    kd.compress(with_transfer, kd.Config(2.0, 0.7, 0.0, True, labelled, FIT))
    steps = [line["step"] for line in read_history(with_transfer.recorder.history) if "best" in line]
    rows = with_transfer.with_transfer(labelled).train
    assert steps == [FIT.epochs * -(-len(rows) // FIT.batch_size)]
    assert (rows.label >= 0).mean() >= labelled


@pytest.mark.parametrize("width", [16, 8])
def test_kd_learns_what_the_teachers_head_reads(with_transfer: MethodContext, tmp_path: Path, width: int) -> None:
    """Of a student of another width a linear map of it: as near to the teacher's, where that is learnt, as its mean is not."""
    checkpoints.save(BertModel(tiny_config(hidden_size=width)), tiny_tokenizer(), tmp_path / "narrow")
    given = replace(with_transfer, checkpoint=tmp_path / "narrow", shape=checkpoints.StudentConfig((0, 1)))
    rows = given.with_transfer().with_targets(["pooled"])
    batch = rows.batch(np.arange(len(rows)))
    teachers, unexplained = batch.targets["pooled"].float(), []
    for weight in (0.0, 100.0):
        student = kd.compress(
            given, kd.Config(2.0, 0.7, weight, True, 0.0, replace(FIT, epochs=30, validations=0))
        ).eval()
        with torch.no_grad():
            ours = checkpoints.forward_batch(student, batch).pooled
        ours = torch.cat([ours, torch.ones(len(ours), 1)], 1)
        unexplained.append(float((ours @ torch.linalg.lstsq(ours, teachers).solution - teachers).square().mean()))
    assert unexplained[1] < 0.9 * unexplained[0]
