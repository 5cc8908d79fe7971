"""BERT-of-Theseus: the schedules, the two limits, what is frozen and what is left."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer

from filbert import FilbertError
from filbert.methods import pkd, theseus
from filbert.methods.context import MethodContext
from filbert.methods.theseus import Config, TheseusEncoder, replacing_rate
from filbert.models import checkpoints
from filbert.training import losses
from filbert.training.layerwise import LayerMap
from filbert.training.loop import TrainingConfig

FIT = TrainingConfig(2, 8, 1e-3, 0.0, "linear", 0.0, 1.0, validations=0, patience=1)
PKD = pkd.Config(2.0, 0.5, 100.0, replace(FIT, epochs=4))
CURRICULUM = Config("curriculum", 0.3, 0.5, "bottom", False, FIT)


def test_the_probability_of_replacing() -> None:
    assert [replacing_rate(CURRICULUM, step, 100) for step in (0, 25, 50, 99)] == pytest.approx([0.3, 0.65, 1.0, 1.0])
    constant, anti = replace(CURRICULUM, schedule="constant"), replace(CURRICULUM, schedule="anti")
    assert [replacing_rate(constant, step, 100) for step in (0, 49, 50)] == pytest.approx([0.3, 0.3, 1.0])
    assert [replacing_rate(anti, step, 100) for step in (0, 25, 50)] == pytest.approx([0.7, 0.35, 1.0])


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_never_replaced_is_the_teacher_and_always_replaced_is_the_successor(
    context: MethodContext, probability: float
) -> None:
    teacher, student = context.cut_from_teacher([0, 1]), context.cut_from_teacher([1])
    wanted, batch = (teacher if probability == 0 else context.cut_from_teacher([1])), context.train.batch(np.arange(8))
    student.bert.encoder = TheseusEncoder(teacher.bert.encoder, student.bert.encoder, lambda step: probability)
    for module in student.modules():
        module.p = 0.0 if isinstance(module, torch.nn.Dropout) else getattr(module, "p", None)
        module.dropout = (
            0.0 if isinstance(getattr(module, "dropout", None), float) else getattr(module, "dropout", None)
        )
    with torch.no_grad():
        found = checkpoints.forward_batch(student.train(), batch).logits
        assert torch.equal(found, checkpoints.forward_batch(wanted.eval(), batch).logits)
        torch.testing.assert_close(checkpoints.forward_batch(student, batch, logits_alone=True).logits, found)
        assert torch.equal(
            checkpoints.forward_batch(student.eval(), batch).logits,
            checkpoints.forward_batch(context.cut_from_teacher([1]).eval(), batch).logits,
        )


def test_one_draw_decides_for_a_module_and_a_batch(context: MethodContext) -> None:
    """Every row of a batch goes the same way, and over many steps the share of replaced modules is the probability."""
    teacher, student = context.cut_from_teacher([0, 1]), context.cut_from_teacher([1])
    encoder = TheseusEncoder(teacher.bert.encoder, student.bert.encoder, lambda step: 0.25).train()
    went = {"old": 0, "new": 0}
    encoder.predecessor.layer[0].register_forward_hook(lambda *_: went.update(old=went["old"] + 1))
    encoder.successor.layer[0].register_forward_hook(lambda *_: went.update(new=went["new"] + 1))
    torch.manual_seed(0)
    x, mask = torch.randn(3, 4, 16), torch.ones(3, 1, 1, 4, dtype=torch.bool)
    for _ in range(400):
        encoder(x, mask)
    assert went["old"] + went["new"] == 400 == int(encoder.step)
    assert went["new"] / 400 == pytest.approx(0.25, abs=0.06)


def test_only_the_successors_are_trained_and_a_plain_bert_is_left(context: MethodContext, tmp_path: Path) -> None:
    student, start = theseus.compress(context, CURRICULUM), context.cut_from_teacher([0]).state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(value, start[name]) != name.startswith("bert.encoder."), name
    checkpoints.save(student, tiny_tokenizer(), tmp_path / "student")
    loaded, batch = checkpoints.load_model(tmp_path / "student"), context.train.batch(np.arange(8))
    assert type(loaded).__name__ == "BertForSequenceClassification"
    with torch.no_grad():
        torch.testing.assert_close(
            checkpoints.forward_batch(loaded, batch).logits, checkpoints.forward_batch(student.eval(), batch).logits
        )


def test_the_teacher_is_untouched(context: MethodContext) -> None:
    student, teacher = context.cut_from_teacher([0]), context.cut_from_teacher([0, 1])
    before = {name: value.clone() for name, value in teacher.bert.encoder.state_dict().items()}
    student.bert.encoder = TheseusEncoder(teacher.bert.encoder, student.bert.encoder, lambda step: 0.5)
    context.fit(
        student,
        lambda b: context.hard_loss(checkpoints.forward_batch(student, b).logits, b),
        context.train,
        FIT,
        "replace",
    )
    after = student.bert.encoder.predecessor.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_a_module_that_is_not_drawn_has_a_gradient_of_zero(context: MethodContext) -> None:
    """Not none: Adam's moments decay, as in the official code."""
    nothing = replace(
        CURRICULUM,
        initial_probability=1e-9,
        schedule="constant",
        replacing_proportion=1.0,
        training=replace(FIT, epochs=1),
    )
    student = theseus.compress(context, nothing)
    found = [parameter.grad for parameter in student.bert.encoder.parameters()]
    assert found
    assert all(gradient is not None and not gradient.any() for gradient in found)


def test_the_head_may_be_trained_too(context: MethodContext) -> None:
    student = theseus.compress(context, replace(CURRICULUM, train_head=True))
    assert not torch.equal(student.classifier.weight, context.cut_from_teacher([0]).classifier.weight)


def test_a_depth_that_does_not_divide_is_refused(context: MethodContext) -> None:
    with pytest.raises(FilbertError, match="divides the teacher's 3"):
        theseus.compress(replace(context, layer_map=LayerMap(2, 3)), CURRICULUM)


def test_patient_distillation_follows_the_first_token(context: MethodContext) -> None:
    """A 2-layer student of a 2-layer teacher follows layer 1; its patience term falls."""
    said = context.cache_predictions(checkpoints.load_model(context.teacher), ("logits", "hidden.1"))
    deep = replace(context, shape=checkpoints.StudentConfig((0, 1)), layer_map=LayerMap(2, 2), cache=said)
    assert pkd.columns(deep.layer_map, PKD) == ("logits", "hidden.1")
    rows = deep.with_targets(["hidden.1"]).batch(np.arange(32))

    def distance(student: torch.nn.Module) -> float:
        with torch.no_grad():
            states = checkpoints.forward_batch(student.eval(), rows, states=True).hidden_states[1][:, 0]
        return float(losses.normalized_state_mse(states[:, None], rows.targets["hidden.1"][:, :1]))

    assert distance(pkd.compress(deep, PKD)) < 0.9 * distance(deep.new_student())


def test_the_successors_start_as_the_layers_named(context: MethodContext) -> None:
    still = replace(CURRICULUM, training=replace(FIT, epochs=0))
    named = replace(context, shape=checkpoints.StudentConfig((1,)))
    for config, layer in ((still, 0), (replace(still, successor_layers="student"), 1)):
        found, wanted = theseus.compress(named, config).state_dict(), context.cut_from_teacher([layer]).state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
