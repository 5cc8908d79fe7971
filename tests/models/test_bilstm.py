"""The BiLSTM against PyTorch's own on packed rows, and pairs as two texts read one at a time."""

from pathlib import Path

import pytest
import torch
from export_files import bilstm, saved
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from filbert.models import checkpoints
from filbert.models.bilstm import BiLstmForTokenClassification, split_pairs

SEPARATOR = 3
LENGTHS = torch.tensor([7, 2, 5, 1])
IDS = torch.randint(4, 35, (4, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(7) < LENGTHS[:, None]


def packed_states(model, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    """PyTorch's states of packed rows, -inf on padding, and the last states of both directions."""
    rows = model.embedding(model.rows[ids])
    states, (last, _) = model.lstm(pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(states, batch_first=True, padding_value=-torch.inf)[0], torch.cat([*last], dim=1)


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_states_and_gradients_are_those_of_packed_rows(pooling: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = checkpoints.load_model(saved(bilstm(pooling=pooling), tmp_path / "model"))
    hidden = model(IDS, MASK).hidden_states[0]
    states, last = packed_states(model, IDS, LENGTHS)
    expected = torch.nn.functional.gelu(model.dense(states.amax(1) if pooling == "max" else last))
    torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=0)
    weights = list(model.lstm.parameters())
    ours, theirs = (torch.autograd.grad(value.square().sum(), weights) for value in (hidden, expected))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_tags_have_the_states_of_packed_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = checkpoints.load_model(saved(bilstm(BiLstmForTokenClassification, num_labels=7), tmp_path / "model"))
    states, _ = packed_states(model, IDS, LENGTHS)
    expected = model.classifier(torch.nn.functional.gelu(model.dense(states[MASK])))
    torch.testing.assert_close(model(IDS, MASK).logits[MASK], expected, atol=1e-6, rtol=0)


def test_a_pair_is_parted_after_the_first_separator() -> None:
    ids = torch.tensor([[1, 8, 9, 3, 7, 3], [1, 3, 5, 6, 0, 0], [1, 3, 3, 0, 0, 0], [1, 5, 0, 0, 0, 0]])
    mask = torch.arange(6) < torch.tensor([6, 4, 3, 2])[:, None]
    texts, real = split_pairs(ids, mask, SEPARATOR)
    assert [row[m].tolist() for row, m in zip(texts[:4], real[:4], strict=True)] == [
        [1, 8, 9, 3],
        [1, 3],
        [1, 3],
        [1, 5],
    ]
    assert [row[m].tolist() for row, m in zip(texts[4:7], real[4:7], strict=True)] == [[7, 3], [5, 6], [3]]
    assert real[7].tolist() == [True, False, False, False]  # no second text: one token, not none


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_a_siamese_student_reads_each_text_alone(pooling: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = checkpoints.load_model(
        saved(bilstm(pooling=pooling, pairs="siamese", sep_token_id=SEPARATOR, activation="tanh"), tmp_path / "model")
    )
    first, second = torch.tensor([[1, 8, 9, 3]]), torch.tensor([[7, 3]])

    def alone(ids: Tensor) -> Tensor:
        states, last = packed_states(model, ids, torch.tensor([ids.shape[1]]))
        return states.amax(1) if pooling == "max" else last

    u, v = alone(first), alone(second)
    expected = model.dense(torch.cat([u, v, (u - v).abs(), u * v], dim=1)).tanh()
    padded = torch.nn.functional.pad(torch.cat([first, second], dim=1), (0, 3), value=5)
    found = model(padded, torch.arange(9)[None] < 6)
    torch.testing.assert_close(found.hidden_states[0], expected, atol=1e-6, rtol=0)
