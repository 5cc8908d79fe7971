"""Dropout by a cheap generator: of the right share, repeatable, and in any model."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from filbert.models.bert import FilbertConfig, FilbertForSequenceClassification
from filbert.models.checkpoints import ONLY_FILBERT
from filbert.training import dropout
from filbert.training.dropout import fast_dropout

CPU = torch.device("cpu")


def test_dropout_is_a_function_of_torchs_seed_and_keeps_the_mean() -> None:
    layer, x = nn.Dropout(0.1), torch.ones(400, 1001)
    with fast_dropout(CPU):
        torch.manual_seed(3)
        first = layer(x)
        torch.manual_seed(3)
        assert torch.equal(first, layer(x))
        assert not torch.equal(first, layer(x))
        assert torch.equal(layer.eval()(x), x)
    torch.manual_seed(3)
    assert not torch.equal(first, layer.train()(x))  # torch's own again
    assert abs(float((first == 0).float().mean()) - 0.1) < 0.002
    assert abs(float(first.mean()) - 1) < 0.002


@pytest.mark.parametrize("kind", ["bool", "added", "none"])
def test_attention_with_dropout_is_torchs_where_nothing_is_dropped(kind: str) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 6, 8, requires_grad=True)
    mask = torch.rand(2, 1, 1, 6) < 0.7
    mask[..., 0] = True
    given = {"bool": mask, "added": torch.zeros(mask.shape).masked_fill(~mask, -torch.inf), "none": None}[kind]

    def values_and_gradients(probability: float) -> list[Tensor]:
        with fast_dropout(CPU):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=given, dropout_p=probability)
        return [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]

    for ours, theirs in zip(values_and_gradients(1e-9), values_and_gradients(0.0), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_weights_are_float32_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's softmax of bfloat16 is less exact, and several times as slow where rows are no multiple of 16."""
    drawn: list[torch.dtype] = []
    draw = dropout.dropout_mask

    def noted(shape: torch.Size, probability: float, dtype: torch.dtype) -> Tensor:
        drawn.append(dtype)
        return draw(shape, probability, dtype)

    monkeypatch.setattr(dropout, "dropout_mask", noted)
    q, k, v = torch.randn(3, 2, 4, 27, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), fast_dropout(CPU):
        found = F.scaled_dot_product_attention(q, k, v, dropout_p=1e-9)
    assert drawn == [torch.float32]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v), atol=0.02, rtol=0.02)


def test_hugging_faces_bert_trains_with_the_same_masks_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher and a masked language model are transformers' own classes: their dropout and their attention are replaced, too."""
    torch.manual_seed(0)
    theirs = BertForSequenceClassification(tiny_config(num_hidden_layers=2)).train()
    fields = {name: value for name, value in theirs.config.to_dict().items() if name not in ONLY_FILBERT}
    ours = FilbertForSequenceClassification(FilbertConfig(**fields)).train()
    ours.load_state_dict(theirs.state_dict())
    shapes: list[tuple[int, ...]] = []
    draw = dropout.dropout_mask

    def noted(shape: torch.Size, *more: object) -> Tensor:
        shapes.append(tuple(shape))
        return draw(shape, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(dropout, "dropout_mask", noted)
    ids, mask = torch.randint(5, 35, (4, 9)), torch.arange(9)[None] < torch.tensor([9, 5, 3, 1])[:, None]
    logits, drawn = [], []
    for model in (theirs, ours):
        torch.manual_seed(1)
        shapes.clear()
        with fast_dropout(CPU):
            logits.append(model(ids, attention_mask=mask).logits)
        drawn.append(list(shapes))
    assert len(drawn[0]) == 1 + 2 * 3 + 1  # embeddings; attention and two outputs a layer; head
    assert drawn[0] == drawn[1]
    torch.testing.assert_close(*logits)


def test_without_dropout_a_model_trains_as_it_answers() -> None:
    torch.manual_seed(0)
    ids, mask = torch.randint(5, 35, (4, 9)), torch.arange(9)[None] < torch.tensor([9, 5, 3, 1])[:, None]
    for model in (
        BertForSequenceClassification(tiny_config()),
        FilbertForSequenceClassification(
            FilbertConfig(
                vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
            )
        ),
    ):
        answers = model.eval()(ids, attention_mask=mask).logits
        with fast_dropout(CPU, keep=False):
            torch.testing.assert_close(model.train()(ids, attention_mask=mask).logits, answers)
        with fast_dropout(CPU):
            assert not torch.allclose(model(ids, attention_mask=mask).logits, answers, atol=1e-4)


@pytest.mark.parametrize(("tokens", "own"), [(dropout.SHORT, True), (dropout.SHORT + 1, False)])
def test_torchs_own_attention_is_taken_where_it_is_faster(tokens: int, own: bool) -> None:
    """Short rows, and all with dropout, are written out: torch's takes several times as long there."""
    q, k, v = torch.randn(3, 1, 2, tokens, 8)
    expected = F.scaled_dot_product_attention(q, k, v)
    with fast_dropout(CPU):
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v), expected)
        products = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        with products:
            F.scaled_dot_product_attention(q, k, v)
    assert any("scaled_dot_product" in event.key for event in products.key_averages()) is not own
