"""BiLSTM students: the architecture, its start, the order of thawing, the stages, and the face to transformers."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from filbert.methods.recurrent import (
    EpochsConfig,
    ShapeConfig,
    WeightsConfig,
    learn_hard,
    learn_jointly,
    learn_representation,
    new_bilstm,
    new_head,
    unfrozen,
)
from tiny import find_task, load_without_filbert, sentences, student_logits, tiny_tokenizer

from filbert import FilbertError
from filbert.data import arrow, batches, prepare
from filbert.methods import (
    bilstm,
    bilstm_finetune,
    bilstm_hard,
    bilstm_joint,
    bilstm_soft,
    bilstm_stages,
    kd_transfer,
)
from filbert.methods.context import MethodContext
from filbert.models import checkpoints, size
from filbert.text.transfer import to_rows
from filbert.tracking.history import read_history
from filbert.training.loop import TrainingConfig, _schedule, mean_loss

FIT = TrainingConfig(2, 8, 3e-3, 0.0, "cosine", 0.0, 1.0, validations=2, patience=2)
SHAPE = ShapeConfig(embedding=8, lstm=6, pooling="last", dropout=0.0, start="svd")
CONFIG = bilstm.Config(SHAPE, True, True, replace(FIT, epochs=6), FIT, FIT)
TASK = find_task("sst2")


@pytest.fixture
def listened(context: MethodContext, prepared: prepare.Prepared) -> MethodContext:
    """A context with transfer rows, whose cache holds what the teacher's head reads of all rows."""
    known = {text for table in prepared.tables.values() for text in table["sentence"].to_pylist()}
    texts = [text for text, _ in sentences(200, seed=5) if text not in known][:40]
    table = pa.Table.from_pylist(list(to_rows(((text,) for text in texts), TASK)), schema=arrow.row_schema(TASK))
    context = replace(context, transfer=batches.tokenize(table, TASK, tiny_tokenizer(), batches.TokenizerConfig(16)))
    said = context.with_transfer().cache_predictions(checkpoints.load_model(context.teacher), ("logits", "pooled"))
    return replace(context, cache=said)


@pytest.mark.parametrize("pooling", ["last", "max"])
def test_padding_does_not_count(listened: MethodContext, pooling: str) -> None:
    student = new_bilstm(listened, replace(SHAPE, pooling=pooling)).eval()
    batch = listened.train.batch(np.arange(6))
    with torch.no_grad():
        together = checkpoints.forward_batch(student, batch).logits
        alone = [checkpoints.forward_batch(student, listened.train.batch(np.array([i]))).logits for i in range(6)]
        wide = batches.replace(
            batch,
            ids=torch.nn.functional.pad(batch.ids, (0, 9), value=7),
            mask=torch.nn.functional.pad(batch.mask, (0, 9)),
        )
        assert torch.allclose(checkpoints.forward_batch(student, wide).logits, together, atol=1e-6)
    assert torch.allclose(torch.cat(alone), together, atol=1e-6)


def test_the_embedding_is_the_best_of_its_rank_for_the_pieces_seen(listened: MethodContext) -> None:
    """Products of any two tokens are those of the teacher's table, as far as rank 8 can tell them; others share a row."""
    student = new_bilstm(listened, SHAPE)
    table = checkpoints.load_model(listened.teacher).get_input_embeddings().weight.detach()
    seen = torch.from_numpy(np.unique(listened.with_transfer().train.ids).astype(np.int64))
    assert student.config.kept_tokens == len(seen) + 1
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
    with pytest.raises(FilbertError, match=r"at most 16 numbers a token.* got 17"):
        new_bilstm(listened, replace(SHAPE, embedding=17))


def test_parts_thaw_from_the_top(listened: MethodContext) -> None:
    student = new_bilstm(listened, SHAPE)
    found = [
        (name, {n.split(".")[0] for n, p in student.named_parameters() if p.requires_grad})
        for name in unfrozen(student, True)
    ]
    assert found == [
        ("head", {"classifier"}),
        ("dense", {"classifier", "dense"}),
        ("lstm", {"classifier", "dense", "lstm"}),
        ("embedding", {"classifier", "dense", "lstm", "embedding"}),
    ]
    assert list(unfrozen(student, False)) == ["all"]
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_the_cosine_falls_to_nothing() -> None:
    fit = replace(FIT, warmup=0.1)
    assert [_schedule(step, 110, fit) for step in (0, 10, 11, 110)] == pytest.approx([1 / 11, 1.0, 1.0, 0.0])
    assert _schedule(11 + 99 // 2, 110, fit) == pytest.approx(0.5, abs=0.02)


def test_stages_come_in_order_and_the_student_learns(listened: MethodContext, tmp_path: Path) -> None:
    learnt = listened.with_transfer().with_targets(["pooled"])
    fresh = new_bilstm(listened, SHAPE)
    before = mean_loss(fresh, learn_representation(fresh, listened), learnt, listened.device)
    student = bilstm.compress(listened, CONFIG)
    phases = list(dict.fromkeys(line["phase"] for line in read_history(listened.recorder.history)))
    parts = ("head", "dense", "lstm", "embedding")
    assert phases == ["representation", *(f"logits-{p}" for p in parts), *(f"labels-{p}" for p in parts)]
    best = [line["best"] for line in read_history(listened.recorder.history) if "best" in line]
    assert -best[0] < before
    checkpoints.save(student, tiny_tokenizer(), tmp_path / "student")
    assert student_logits(checkpoints.load_model(tmp_path / "student")) == pytest.approx(
        np.array(student_logits(student)), abs=1e-6
    )
    said = load_without_filbert(tmp_path / "student", "trust", tmp_path)
    torch.testing.assert_close(torch.tensor(said["logits"]), torch.tensor(student_logits(student)))


def test_the_head_of_stage_three_is_new(listened: MethodContext) -> None:
    student = new_bilstm(listened, SHAPE)
    before = student.classifier.weight.detach().clone()
    new_head(student, 9)
    assert not torch.equal(student.classifier.weight, before)


def test_multiply_adds_of_an_lstm_are_counted(listened: MethodContext) -> None:
    """4 gates, 2 directions: 8 H (E + H) a token; and the two linear layers of one row."""
    student, batch = new_bilstm(listened, SHAPE), listened.train.batch(np.array([0]))
    tokens = int(batch.mask.sum())
    assert size.multiply_adds(student, batch) == 8 * 6 * (8 + 6) * tokens + 12 * 16 + 16 * 2


def test_transfer_rows_have_words_and_no_label(listened: MethodContext) -> None:
    """Their labels count for nothing, whatever a student says of them; the teacher's answers stand for them where asked."""
    wide = listened.with_transfer()
    assert len(wide.train) == len(listened.train) + len(listened.transfer) == len(listened.train) + 40
    assert len(wide.with_transfer().train) == len(wide.train)  # once is enough
    mixed = wide.with_targets(["logits", "pooled"])
    some = mixed.batch(np.array([0, len(wide.train) - 1]))
    assert some.label[1] == -1
    logits = torch.tensor([[2.0, -1.0], [9.0, -9.0]], requires_grad=True)
    loss = listened.hard_loss(logits, some)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits[:1], some.label[:1]).item())
    loss.backward()
    assert not logits.grad[1].any()
    none = mixed.batch(np.arange(len(wide.train) - 4, len(wide.train)))
    assert listened.hard_loss(logits[[0, 0, 1, 1]], none).item() == 0.0
    student = new_bilstm(listened, SHAPE).eval()
    answers = some.targets["logits"].argmax(-1)
    wanted = torch.stack([some.label[0], answers[1]])
    assert float(learn_hard(student, listened)(some)) == pytest.approx(
        float(torch.nn.functional.cross_entropy(checkpoints.forward_batch(student, some).logits, wanted)), rel=1e-5
    )
    weights = WeightsConfig(1.0, 0.0, 0.0)
    assert float(learn_jointly(student, listened, weights)(some)) == pytest.approx(
        float(listened.hard_loss(checkpoints.forward_batch(student, some).logits, some)), rel=1e-5
    )


def test_nothing_is_learnt_of_labels_where_there_are_none(listened: MethodContext) -> None:
    """A student of unlabelled text alone: the labels of the training rows do not reach it."""
    config = bilstm.Config(SHAPE, True, False, FIT, FIT, None)
    other = replace(
        listened, train=replace(listened.train, label=1 - listened.train.label), scratch=listened.scratch / "other"
    )
    one, two = bilstm.compress(listened, config), bilstm.compress(other, config)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


STAGES = EpochsConfig(representation=1.5, logits=2, labels=1)
ONCE = bilstm_hard.Config(SHAPE, STAGES, replace(FIT, epochs=1, patience=9))
IN_STAGES = bilstm.Config(SHAPE, True, True, replace(FIT, epochs=1.5), FIT, replace(FIT, epochs=1))


@pytest.mark.parametrize(
    ("method", "config"),
    [
        (bilstm, IN_STAGES),
        (bilstm_stages, replace(IN_STAGES, unfreeze=False)),
        (bilstm_soft, replace(IN_STAGES, follow=False)),
        (bilstm_finetune, replace(ONCE, shape=replace(SHAPE, start="checkpoint"))),
        (bilstm_hard, ONCE),
        (bilstm_joint, bilstm_joint.Config(SHAPE, STAGES, ONCE.fit, WeightsConfig(1.0, 1.0, 1.0))),
    ],
)
def test_all_are_of_one_size_and_take_as_many_steps(listened: MethodContext, method: Any, config: Any) -> None:
    """However many transfer rows there are: the stages' steps on nine tenths of all rows and on the labelled ones."""
    config = _patient(config)
    student = method.compress(listened, config)
    assert student.embedding.weight.shape == new_bilstm(listened, SHAPE).embedding.weight.shape
    steps = sum(line["step"] for line in read_history(listened.recorder.history) if "best" in line)
    everything, size = len(listened.with_transfer().train), FIT.batch_size
    learnt, labelled = -(-(everything - -(-everything // 10)) // size), -(-len(listened.train) // size)
    assert abs(steps - (round(1.5 * learnt) + 4 * 2 * learnt + 4 * labelled)) <= 4  # stretched epochs are rounded


def _patient(config: Any) -> Any:
    fits = {
        f.name: getattr(config, f.name) for f in fields(config) if isinstance(getattr(config, f.name), TrainingConfig)
    }
    return replace(config, **{name: replace(fit, patience=99) for name, fit in fits.items()})


def test_a_control_without_a_teacher_starts_without_it(listened: MethodContext) -> None:
    ours = new_bilstm(listened, replace(SHAPE, start="checkpoint")).embedding.weight
    assert not torch.equal(ours, new_bilstm(listened, SHAPE).embedding.weight)
    other = replace(listened, teacher=listened.checkpoint)
    assert torch.equal(ours, new_bilstm(other, SHAPE).embedding.weight)


def test_kd_gains_the_transfer_rows(listened: MethodContext) -> None:
    kd_transfer.compress(listened, kd_transfer.Config(2.0, 0.7, FIT))
    steps = [line["step"] for line in read_history(listened.recorder.history) if "best" in line]
    assert steps == [FIT.epochs * -(-len(listened.with_transfer().train) // FIT.batch_size)]
