"""Layer-wise losses: closed forms, the uniform map, and the limit where the student is its teacher."""

import numpy as np
import pytest
import torch
from tiny import find_task

from filbert import FilbertError
from filbert.data import batches
from filbert.methods import tinybert
from filbert.methods.context import MethodContext
from filbert.models import checkpoints, intermediate_outputs
from filbert.models.bert import FilbertConfig, FilbertForSequenceClassification
from filbert.training import losses
from filbert.training.layerwise import LayerMap, LayerwiseLoss
from filbert.training.loop import TrainingConfig

FIT = TrainingConfig(2, 8, 1e-3, 0.1, "linear", 0.01, 1.0, validations=0, patience=1)


def test_padding_does_not_count() -> None:
    ours, theirs = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    squares = ((ours - theirs) ** 2).numpy()
    assert losses.hidden_state_mse(ours, theirs, mask) == pytest.approx(
        np.concatenate([squares[0, :2], squares[1]]).mean(), rel=1e-5
    )
    ours, theirs = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    squares = ((ours - theirs) ** 2).numpy()
    wanted = np.concatenate([squares[0, :, :2, :2].ravel(), squares[1].ravel()]).mean()
    assert losses.attention_score_mse(ours, theirs, mask) == pytest.approx(wanted, rel=1e-5)


def test_layers_are_mapped_uniformly() -> None:
    """Jiao et al. 2020: g(m) = 3 m for 4 of 12 layers."""
    assert [LayerMap(4, 12).teacher_layer(m) for m in range(5)] == [0, 3, 6, 9, 12]
    assert [LayerMap(4, 6).teacher_layer(m) for m in range(5)] == [0, 2, 3, 4, 6]
    assert LayerMap(2, 6).columns() == ("logits", "hidden.0", "hidden.3", "hidden.6", "attention.3", "attention.6")


def test_a_student_that_is_its_teacher_has_nothing_to_follow(context: MethodContext) -> None:
    """Of the teacher's own layers and weights, W the identity, every term is zero but for float16."""
    depth = LayerMap(2, 2)
    twin = checkpoints.new_student(  # the teacher of conftest, in our own encoder
        context.checkpoint, find_task("sst2"), checkpoints.StudentConfig((0, 1))
    ).eval()
    with intermediate_outputs.ActivationRecorder(twin, depth.columns()) as listen, torch.no_grad():
        batch = context.train.batch(np.arange(4))
        said = {name: value.half() for name, value in listen(batch)[1].items()}
    batch = batches.replace(batch, targets=said)
    with LayerwiseLoss(twin, depth, 16) as following:
        assert float(following.loss(batch)) < 1e-4
        torch.nn.init.normal_(following.projection.weight)
        assert float(following.loss(batch)) > 0.1


def test_other_heads_cannot_be_followed(context: MethodContext) -> None:
    student = FilbertForSequenceClassification(
        FilbertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)
    )
    batch = context.with_targets(context.layer_map.columns()).batch(np.arange(4))
    with (
        LayerwiseLoss(student, context.layer_map, 16) as following,
        pytest.raises(FilbertError, match="the student has 2 heads, the teacher 4"),
    ):
        following.loss(batch)


def test_tinybert_comes_closer_to_its_teacher(context: MethodContext) -> None:
    """The intermediate phase lowers the layer-wise loss, the prediction phase trains on logits, and a plain BERT is left."""
    batch = context.with_targets(context.layer_map.columns()).batch(np.arange(32))

    def distance(student: torch.nn.Module) -> float:
        with LayerwiseLoss(student.eval(), context.layer_map, 16) as following, torch.no_grad():
            return float(following.loss(batch))

    config = tinybert.Config(
        1.0,
        TrainingConfig(20, 8, 3e-3, 0.1, "linear", 0.01, 1.0, 0, 1),
        1.0,
        1.0,
        TrainingConfig(0, 8, 1e-3, 0.1, "linear", 0.01, 1.0, 0, 1),
    )
    assert distance(tinybert.compress(context, config)) < 0.9 * distance(context.new_student())
    student = tinybert.compress(context, tinybert.Config(1.0, FIT, 1.0, 0.7, FIT))
    assert type(student) is FilbertForSequenceClassification
    assert not student.bert.encoder.layer[0].attention["self"].query._forward_hooks  # nobody listens any more
