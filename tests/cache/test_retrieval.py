"""The reference store written from the cache: it finds what was found before, and never a row with the same tokens."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import CPU, find_task, tiny_tokenizer

from filbert.cache import build, retrieval, teacher_cache
from filbert.data import batches, splits
from filbert.models import checkpoints
from filbert.models.reference_store import ReferenceStore, token_hash

ENCODE, COLUMNS = batches.TokenizerConfig(16), retrieval.reference_columns(2)


def tokenize(table: pa.Table) -> batches.TokenizedDataset:
    return batches.tokenize(table, find_task("sst2"), tiny_tokenizer(), ENCODE)


@pytest.fixture
def reader(tmp_path: Path, prepared: splits.Prepared, teacher: Path) -> retrieval.ReferenceReader:
    config = teacher_cache.CacheConfig("float16", batch_size=8, shard_mb=1, budget_gb=1, verify_rows=8, tolerance=0.05)
    key = teacher_cache.cache_fingerprint(teacher, ENCODE, config, CPU)
    table = prepared.tables["train"]
    again = table.slice(0, 1).set_column(0, "idx", pa.array([9999], pa.int32()))
    table = pa.concat_tables([table, again]).combine_chunks()  # its first row twice
    model, train = checkpoints.load_model(teacher), tokenize(table)
    build.build_cache(tmp_path / "cache", model, table, tokenize, COLUMNS, key, config, CPU)
    index = retrieval.build_index(train)
    found = retrieval.find_references(index, train, train, 3)
    retrieval.save_references(tmp_path / "references", index, {"train": found})
    cache, settings = teacher_cache.TeacherCache([tmp_path / "cache"], key), retrieval.ReferenceSettings(2, "float16")
    return retrieval.ReferenceReader(tmp_path / "references", cache, train, COLUMNS, "nearest", settings)


def test_a_store_finds_the_references_that_were_found_before(reader: retrieval.ReferenceReader, tmp_path: Path) -> None:
    reader.write_store(tmp_path / "store")
    store, train = ReferenceStore(tmp_path / "store"), reader.train
    batch, before = train.batch(np.arange(len(train))), reader.of("train", train)
    assert np.array_equal(store.find(batch.ids, batch.mask), before.nearest)
    for ours, cached in zip(store(batch.ids, batch.mask), before.take(np.arange(len(train))).values(), strict=True):
        torch.testing.assert_close(ours, cached.to(ours.dtype))


def test_a_store_never_finds_a_row_with_the_same_tokens(reader: retrieval.ReferenceReader, tmp_path: Path) -> None:
    reader.write_store(tmp_path / "store")
    store, train = ReferenceStore(tmp_path / "store"), reader.train
    first = train.batch(np.array([0]))
    assert {0, len(train) - 1}.isdisjoint(store.find(first.ids, first.mask)[0])
    assert store.token_hashes[0] == store.token_hashes[-1] != store.token_hashes[1]


def test_the_hash_depends_on_tokens_and_their_order() -> None:
    assert token_hash([1, 2]) == token_hash(np.array([1, 2]).tolist())
    assert len({token_hash(tokens) for tokens in ([1, 2], [2, 1], [1], [1, 2, 0], [258])}) == 5
