"""The encoder equals Hugging Face's, and its shapes have the parameters the papers count."""

import pytest
import torch
from tiny import tiny_config
from transformers import BertForSequenceClassification

from filbert.models.bert import FilbertConfig, FilbertForSequenceClassification, FilbertForTokenClassification
from filbert.models.checkpoints import ONLY_FILBERT

MASK = torch.arange(9)[None] < torch.tensor([9, 5, 3, 1])[:, None]  # ragged


def ours_like(theirs: BertForSequenceClassification) -> FilbertForSequenceClassification:
    fields = {k: v for k, v in theirs.config.to_dict().items() if k not in ONLY_FILBERT}
    model = FilbertForSequenceClassification(FilbertConfig(**fields)).eval()
    model.load_state_dict(theirs.state_dict())
    return model


def test_logits_and_all_hidden_states_equal_hugging_faces() -> None:
    theirs = BertForSequenceClassification(tiny_config(num_labels=3, num_hidden_layers=3)).eval()
    ids, types = torch.randint(5, 35, (4, 9)), torch.randint(0, 2, (4, 9))
    with torch.inference_mode():
        wanted = theirs(ids, attention_mask=MASK.long(), token_type_ids=types, output_hidden_states=True)
        got = ours_like(theirs)(ids, MASK, types)
    torch.testing.assert_close(got.logits, wanted.logits)
    assert len(got.hidden_states) == 4
    for ours, reference in zip(got.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(ours[MASK], reference[MASK])


def test_gradients_equal_hugging_faces() -> None:
    theirs = BertForSequenceClassification(
        tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ).train()
    ours, ids, label = ours_like(theirs).train(), torch.randint(5, 35, (4, 9)), torch.tensor([0, 1, 1, 0])
    for model in (theirs, ours):
        torch.nn.functional.cross_entropy(model(ids, attention_mask=MASK).logits, label).backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, msg=name)


def test_logits_alone_have_the_same_values_and_gradients() -> None:
    """The last layer is then computed for the first token alone: the others reach the head by its keys and values."""
    fields = tiny_config(num_hidden_layers=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).to_dict()
    model = FilbertForSequenceClassification(FilbertConfig(**fields | {"model_type": "filbert"})).train()
    widths: list[int] = []
    for layer in model.bert.encoder.layer:
        layer.intermediate["dense"].register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    ids, label, found = torch.randint(5, 35, (4, 9)), torch.tensor([0, 1, 1, 0]), []
    for alone in (False, True):
        model.zero_grad()
        output = model(ids, MASK, logits_alone=alone)
        torch.nn.functional.cross_entropy(output.logits, label).backward()
        found.append([output.logits, *(parameter.grad for parameter in model.parameters())])
        assert (output.hidden_states is None) == alone
    assert widths == [9, 9, 9, 9, 9, 1]
    for whole, first in zip(*found, strict=True):
        torch.testing.assert_close(first, whole)


def test_a_token_classifier_needs_all_tokens() -> None:
    fields = tiny_config().to_dict() | {"model_type": "filbert"}
    model, ids = FilbertForTokenClassification(FilbertConfig(**fields)).eval(), torch.randint(5, 35, (4, 9))
    assert torch.equal(model(ids, MASK, logits_alone=True).logits, model(ids, MASK).logits)


def test_padding_changes_nothing() -> None:
    model = FilbertForSequenceClassification(
        FilbertConfig(**tiny_config().to_dict() | {"model_type": "filbert"})
    ).eval()
    ids = torch.randint(5, 35, (1, 5))
    padded = torch.nn.functional.pad(ids, (0, 4))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, model(padded, padded > 0).logits)


def test_every_width_may_differ_by_layer() -> None:
    config = FilbertConfig(hidden_size=16, num_hidden_layers=2, head_size=4, layer_heads=[3, 1], layer_intermediate=[20, 7],
                           embedding_size=5, vocab_size=35)  # fmt: skip
    model = FilbertForSequenceClassification(config).eval()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes["bert.encoder.layer.0.attention.self.query.weight"] == (12, 16)
    assert shapes["bert.encoder.layer.1.attention.output.dense.weight"] == (16, 4)
    assert shapes["bert.encoder.layer.1.intermediate.dense.weight"] == (7, 16)
    assert shapes["bert.embeddings.word_embeddings.weight"] == (35, 5)
    assert model(torch.randint(5, 35, (2, 6))).logits.shape == (2, 2)
    assert not config.is_plain


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ({}, 109_483_778),  # BERT-base
        ({"num_hidden_layers": 6}, 66_956_546),  # BERT-of-Theseus
        ({"num_hidden_layers": 4, "hidden_size": 312, "intermediate_size": 1200}, 14_350_874),  # TinyBERT-4
        ({"num_hidden_layers": 8, "head_size": 64, "layer_heads": [2] * 8, "layer_intermediate": [512] * 8,
          "embedding_size": 128}, 14_474_754),  # ROSITA
        ({"num_hidden_layers": 6, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024,
          "vocab_size": 4928}, 6_198_530),  # mixed vocabulary
    ],
)  # fmt: skip
def test_shapes_have_the_papers_parameters(shape: dict, count: int) -> None:
    with torch.device("meta"):
        model = FilbertForSequenceClassification(FilbertConfig(**shape))
    assert sum(parameter.numel() for parameter in model.parameters()) == count
