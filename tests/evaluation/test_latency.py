"""Costs against closed forms; latency is reported, never asserted."""

from pathlib import Path

import torch
from tiny import tiny_config
from transformers import BertForSequenceClassification

from filbert.data import batches
from filbert.data.batches import Batch
from filbert.evaluation import latency
from filbert.models import size


def test_multiply_adds_equal_the_closed_form() -> None:
    """Per layer and token 4 d² for the projections, 2 d f for the feed-forward, 2 T d for scores and mixture; then
    pooler and head once."""
    model, d, f, t, layers = BertForSequenceClassification(tiny_config()), 16, 32, 7, 2
    ids = torch.randint(5, 35, (1, t))
    batch = Batch(ids, torch.zeros_like(ids), torch.ones_like(ids).bool(), torch.zeros(1))
    expected = layers * t * (4 * d * d + 2 * d * f + 2 * t * d) + d * d + 2 * d
    assert size.multiply_adds(model, batch) == expected


def test_bytes_are_those_of_the_weight_files(teacher: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(teacher)
    assert 4 * size.count_parameters(model) <= size.weight_bytes(teacher) < 4 * size.count_parameters(model) + 20_000


def test_typical_batches_spread_over_the_lengths(encoded: batches.TokenizedDataset) -> None:
    lengths = sorted(encoded.lengths)
    assert size.representative_batch(encoded, 1).mask.sum() == lengths[len(lengths) // 2]
    assert len(size.representative_batch(encoded, 32)) == 32


def test_models_are_timed_in_turn(encoded: batches.TokenizedDataset) -> None:
    order: list[str] = []

    class Spy(torch.nn.Module):
        def __init__(self, name: str):
            super().__init__()
            self.name = name

        def forward(self, input_ids, attention_mask):  # type: ignore[no-untyped-def]
            order.append(self.name)
            assert torch.get_num_threads() == 1

    config = latency.LatencyConfig(batch_sizes=(1, 32), warmup=1, rounds=3, threads=1)
    batch = size.representative_batch(encoded, 1)
    found = latency.measure_latency({"a": (Spy("a"), batch), "b": (Spy("b"), batch)}, config)
    assert order == ["a", "b"] * 4
    assert set(found["a"]) == {"minimum", "median", "p95"}
    assert found["a"]["minimum"] <= found["a"]["median"] <= found["a"]["p95"]
