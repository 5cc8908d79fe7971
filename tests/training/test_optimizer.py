"""AdamW by rows against torch's own optimisers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from filbert.runtime import distributed
from filbert.training.optimizer import RowAdamW, clip_gradients, sparse_embeddings

V, D = 12, 4


def table(sparse: bool) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(V, D, sparse=sparse)


def train(embedding: nn.Embedding, optimizer: torch.optim.Optimizer, batches: list[torch.Tensor]) -> torch.Tensor:
    for ids in batches:
        optimizer.zero_grad()
        (embedding(ids) * torch.arange(1.0, D + 1)).square().sum().backward()
        optimizer.step()
    return embedding.weight.detach()


def test_rows_that_all_occur_are_updated_as_by_adamw() -> None:
    batches = [torch.randperm(V).repeat(2) for _ in range(5)]
    ours, dense = table(sparse=True), table(sparse=False)
    options = {"lr": 0.1, "weight_decay": 0.1}
    found = train(ours, RowAdamW(ours.parameters(), **options, fused=True), batches)
    torch.testing.assert_close(found, train(dense, torch.optim.AdamW(dense.parameters(), **options), batches))


def test_without_weight_decay_it_is_sparse_adam() -> None:
    batches = [torch.randint(V, (3,)) for _ in range(8)]
    ours, other = table(sparse=True), table(sparse=True)
    found = train(ours, RowAdamW(ours.parameters(), lr=0.1, weight_decay=0.0, fused=True), batches)
    torch.testing.assert_close(found, train(other, torch.optim.SparseAdam(list(other.parameters()), lr=0.1), batches))


def test_rows_that_do_not_occur_stay() -> None:
    ours = table(sparse=True)
    before = ours.weight.detach().clone()
    after = train(ours, RowAdamW(ours.parameters(), lr=0.1, weight_decay=0.1, fused=True), [torch.tensor([1, 3, 3])])
    changed = (after != before).any(1)
    assert changed.tolist() == [row in (1, 3) for row in range(V)]


def test_its_state_is_adamws_and_can_be_loaded() -> None:
    ours, again = table(sparse=True), table(sparse=True)
    first = RowAdamW(ours.parameters(), lr=0.1, fused=True)
    train(ours, first, [torch.tensor([1, 2])])
    second = RowAdamW(again.parameters(), lr=0.1, fused=True)
    again.load_state_dict(ours.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    batches = [torch.tensor([2, 5])]
    assert torch.equal(train(ours, first, batches), train(again, second, batches))


def test_clipping_counts_sparse_gradients_too() -> None:
    def gradients(sparse: bool) -> list[nn.Parameter]:
        embedding, linear = table(sparse), nn.Linear(D, 1)
        nn.init.ones_(linear.weight)
        nn.init.zeros_(linear.bias)
        F.mse_loss(linear(embedding(torch.tensor([1, 2, 2]))), torch.full((3, 1), 50.0)).backward()
        return [embedding.weight, linear.weight, linear.bias]

    ours, dense = gradients(sparse=True), gradients(sparse=False)
    clip_gradients(ours, 1.0)
    nn.utils.clip_grad_norm_(dense, 1.0)
    for one, other in zip(ours, dense, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.to_dense(), other.grad)


def test_large_tables_alone_are_sparse_and_tied_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small, tied, output = (
        nn.Embedding(10_000, 100),
        nn.Embedding(10, 10),
        nn.Embedding(10_000, 100),
        nn.Linear(100, 10_000),
    )
    output.weight = tied.weight
    model = nn.ModuleList([large, small, tied, output])
    with sparse_embeddings(model, torch.device("cpu")):
        assert [module.sparse for module in (large, small, tied)] == [True, False, False]
    assert not large.sparse
    with monkeypatch.context() as several:  # whose gradients are averaged as they are
        several.setattr(distributed, "WORLD_SIZE", 2)
        with sparse_embeddings(model, torch.device("cpu")):
            assert not large.sparse
