"""BiLSTM students: the architecture, its start, the order of thawing, the stages, and the face to transformers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from test_students import ask_a_stranger, ours

from filbert import FilbertError, data, measure, students
from filbert.methods import bilstm
from filbert.recurrent import ShapeConfig, learn_representation, new_bilstm, new_head, unfrozen
from filbert.study import Study
from filbert.tracking import read_history
from filbert.train import FitConfig, _schedule, mean_loss

FIT = FitConfig(2, 8, 3e-3, 0.0, "cosine", 0.0, 1.0, validations=2, patience=2)
SHAPE = ShapeConfig(embedding=8, lstm=6, pooling="last", dropout=0.0, start="svd")
CONFIG = bilstm.Config(SHAPE, True, replace(FIT, epochs=6), FIT, FIT)


@pytest.fixture
def listened(study: Study) -> Study:
    """A study whose cache holds what the teacher's head reads."""
    return replace(study, cache=study.asked(students.load(study.teacher), ("logits", "pooled")))


@pytest.mark.parametrize("pooling", ["last", "max"])
def test_padding_does_not_count(listened: Study, pooling: str) -> None:
    student = new_bilstm(listened, replace(SHAPE, pooling=pooling)).eval()
    rows = listened.train.batch(np.arange(6))
    with torch.no_grad():
        together = students.ask(student, rows).logits
        alone = [students.ask(student, listened.train.batch(np.array([i]))).logits for i in range(6)]
        wide = data.replace(
            rows,
            ids=torch.nn.functional.pad(rows.ids, (0, 9), value=7),
            mask=torch.nn.functional.pad(rows.mask, (0, 9)),
        )
        assert torch.allclose(students.ask(student, wide).logits, together, atol=1e-6)
    assert torch.allclose(torch.cat(alone), together, atol=1e-6)


def test_the_embedding_is_the_best_of_its_rank_for_the_pieces_seen(listened: Study) -> None:
    """Products of any two pieces are those of the teacher's table, as far as rank 8 can tell them; others share a row."""
    student = new_bilstm(listened, SHAPE)
    table = students.load(listened.teacher).get_input_embeddings().weight.detach()
    seen = torch.from_numpy(np.unique(listened.train.ids).astype(np.int64))
    assert student.config.kept_pieces == len(seen) + 1
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
    with pytest.raises(FilbertError, match="at most 16, the teacher's; got 17"):
        new_bilstm(listened, replace(SHAPE, embedding=17))


def test_parts_thaw_from_the_top(listened: Study) -> None:
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


def test_stages_come_in_order_and_the_student_learns(listened: Study, tmp_path: Path) -> None:
    rows = listened.taught(["pooled"])
    fresh = new_bilstm(listened, SHAPE)
    before = mean_loss(fresh, learn_representation(fresh), rows, listened.device)
    student = bilstm.compress(listened, CONFIG)
    phases = list(dict.fromkeys(line["phase"] for line in read_history(listened.recorder.history)))
    parts = ("head", "dense", "lstm", "embedding")
    assert phases == ["representation", *(f"logits-{p}" for p in parts), *(f"labels-{p}" for p in parts)]
    best = [line["best"] for line in read_history(listened.recorder.history) if "best" in line]
    assert -best[0] < before
    students.save(student, tiny_tokenizer(), tmp_path / "student")
    assert ours(students.load(tmp_path / "student")) == pytest.approx(np.array(ours(student)), abs=1e-6)
    said = ask_a_stranger(tmp_path / "student", "trust", tmp_path)
    torch.testing.assert_close(torch.tensor(said["logits"]), torch.tensor(ours(student)))


def test_the_head_of_stage_three_is_new(listened: Study) -> None:
    student = new_bilstm(listened, SHAPE)
    before = student.classifier.weight.detach().clone()
    new_head(student, 9)
    assert not torch.equal(student.classifier.weight, before)


def test_multiply_adds_of_an_lstm_are_counted(listened: Study) -> None:
    """4 gates, 2 directions: 8 H (E + H) a piece; and the two linear layers of one row."""
    student, batch = new_bilstm(listened, SHAPE), listened.train.batch(np.array([0]))
    pieces = int(batch.mask.sum())
    assert measure.multiply_adds(student, batch) == 8 * 6 * (8 + 6) * pieces + 12 * 16 + 16 * 2
