"""A part of a model as a model: the whole is the same, what is weak goes, what is kept is copied number by number."""

import numpy as np
import pytest
import torch
from tiny import tiny_config
from transformers import BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

from filbert.data import batches
from filbert.models.checkpoints import ShapeError
from filbert.models.pruning import KeptUnits
from filbert.models.subcloning import SubcloneSelection, select_units, subclone


@pytest.fixture
def model() -> BertForMaskedLM:
    torch.manual_seed(4)
    return BertForMaskedLM(tiny_config(initializer_range=0.5)).eval()


@pytest.fixture
def some(encoded: batches.TokenizedDataset) -> batches.Batch:
    return encoded.batch(np.arange(16))


def clone(model: BertForMaskedLM, part: SubcloneSelection) -> BertForMaskedLM:
    table, bias = model.get_input_embeddings().weight.detach(), torch.arange(float(model.config.vocab_size))
    return subclone(model, part, table[:, part.states], bias, 0).eval()


def test_the_whole_is_the_same_model(model: BertForMaskedLM, some: batches.Batch) -> None:
    shape = model.config
    part = select_units(
        model, shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads, shape.intermediate_size, some
    )
    assert part.layers == list(range(shape.num_hidden_layers))
    with torch.inference_mode():
        whole = clone(model, part)(some.ids, some.mask).logits
        model.cls.predictions.bias.copy_(torch.arange(float(shape.vocab_size)))
        assert torch.allclose(whole, model(some.ids, some.mask).logits, atol=1e-4)


def test_heads_and_neurons_that_say_nothing_go(model: BertForMaskedLM, some: batches.Batch) -> None:
    shape = model.config
    size = shape.hidden_size // shape.num_attention_heads
    silent = [i % 2 for i in range(shape.num_hidden_layers)]  # one head of each layer, and every second neuron
    with torch.no_grad():
        for layer, odd in zip(model.bert.encoder.layer, silent, strict=True):
            for weight in layer.attention.self.value.parameters():
                weight[odd * size : (odd + 1) * size] = 0
            layer.intermediate.dense.weight[odd::2] = 0
            layer.intermediate.dense.bias[odd::2] = 0
    heads, neurons = shape.num_attention_heads - 1, shape.intermediate_size // 2
    found = select_units(model, shape.num_hidden_layers, heads * size, heads, neurons, some)
    for kept, odd in zip(found.units, silent, strict=True):
        assert odd not in kept.heads.tolist()
        assert kept.neurons.tolist() == list(range(1 - odd, shape.intermediate_size, 2))


def test_what_is_kept_is_copied(model: BertForMaskedLM) -> None:
    states, heads, neurons = torch.tensor([1, 3, 4, 6]), torch.tensor([1]), torch.tensor([0, 2, 5])
    size = model.config.hidden_size // model.config.num_attention_heads
    assert size == len(states)
    columns = torch.arange(size, 2 * size)
    made = clone(model, SubcloneSelection([1], states, [KeptUnits(heads, neurons)]))
    assert (made.config.hidden_size, made.config.num_attention_heads, made.config.intermediate_size) == (4, 1, 3)
    ours, theirs = made.bert.encoder.layer[0], model.bert.encoder.layer[1]
    for name in ("query", "key", "value"):
        a, b = ours.attention.self.get_submodule(name), theirs.attention.self.get_submodule(name)
        assert torch.equal(a.weight, b.weight[columns][:, states])
        assert torch.equal(a.bias, b.bias[columns])
    pairs = [
        (ours.attention.output.dense.weight, theirs.attention.output.dense.weight[states][:, columns]),
        (ours.attention.output.dense.bias, theirs.attention.output.dense.bias[states]),
        (ours.attention.output.LayerNorm.weight, theirs.attention.output.LayerNorm.weight[states]),
        (ours.intermediate.dense.weight, theirs.intermediate.dense.weight[neurons][:, states]),
        (ours.intermediate.dense.bias, theirs.intermediate.dense.bias[neurons]),
        (ours.output.dense.weight, theirs.output.dense.weight[states][:, neurons]),
        (ours.output.LayerNorm.bias, theirs.output.LayerNorm.bias[states]),
        (made.bert.embeddings.position_embeddings.weight, model.bert.embeddings.position_embeddings.weight[:, states]),
        (made.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight[:, states]),
        (
            made.cls.predictions.transform.dense.weight,
            model.cls.predictions.transform.dense.weight[states][:, states],
        ),
        (made.cls.predictions.decoder.weight, made.bert.embeddings.word_embeddings.weight),
        (made.cls.predictions.decoder.bias, torch.arange(float(model.config.vocab_size))),
    ]
    for a, b in pairs:
        assert torch.equal(a, b)


def test_a_part_that_is_not_there_is_refused(model: BertForMaskedLM, some: batches.Batch) -> None:
    with pytest.raises(ShapeError, match=r"expected a part of the checkpoint: at most .* got 99 layers"):
        select_units(model, 99, 4, 1, 8, some)
    with pytest.raises(ShapeError, match=r"in heads of 4 .* a width of 6 in 1 heads"):
        select_units(model, 1, 6, 1, 8, some)
    other = DistilBertForMaskedLM(DistilBertConfig(vocab_size=40, dim=8, n_heads=2, n_layers=1, hidden_dim=16))
    with pytest.raises(ShapeError, match="expected a BERT-shaped checkpoint, got distilbert"):
        select_units(other, 1, 4, 1, 8, some)
