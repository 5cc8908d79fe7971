"""The cache equals a live forward, appends only what is missing, and refuses whatever does not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_tokenizer
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from filbert import cache, data, device, students

CPU = torch.device("cpu")
CONFIG = cache.CacheConfig(batch_size=8, shard_rows=20, verify_rows=8, tolerance=0.05)
ENCODE = data.EncodeConfig(16)


def part(rows: data.Encoded, count: int) -> data.Encoded:
    """The first rows alone."""
    cut = {name: getattr(rows, name)[:count] for name in ("label", "idx", "hash")}
    return replace(rows, offsets=rows.offsets[: count + 1], **cut)


def built(folder: Path, teacher: Path, rows: data.Encoded) -> cache.Cache:
    key = cache.fingerprint(teacher, ENCODE, CPU)
    cache.build(folder, students.load(teacher), rows, key, CONFIG, CPU)
    return cache.Cache(folder, key)


def test_cached_words_equal_the_live_teacher(tmp_path: Path, teacher: Path, encoded: data.Encoded) -> None:
    opened, model = built(tmp_path, teacher, encoded), students.load(teacher)
    chosen = np.array([5, 0, 41])
    with torch.inference_mode(), device.autocast(CPU):
        live = students.ask(model, encoded.batch(chosen)).logits.float()
    batch = encoded.taught(opened.on(encoded)).batch(chosen)
    torch.testing.assert_close(batch.teacher["logits"], live, atol=2e-2, rtol=0)  # bfloat16 where the processor has it
    assert opened.verify(encoded, model, CONFIG, CPU) < CONFIG.tolerance


def test_only_missing_rows_are_asked(tmp_path: Path, teacher: Path, encoded: data.Encoded) -> None:
    model, key = students.load(teacher), cache.fingerprint(teacher, ENCODE, CPU)
    asked = [cache.build(tmp_path, model, rows, key, CONFIG, CPU) for rows in (part(encoded, 30), encoded, encoded)]
    assert asked == [30, len(encoded) - 30, 0]
    opened = cache.Cache(tmp_path, key)
    assert len(opened.on(encoded).at) == len(encoded)
    assert len(list(tmp_path.iterdir())) == 2 + -(-(len(encoded) - 30) // 20)  # shards of at most 20 rows


def test_a_killed_build_goes_on(tmp_path: Path, teacher: Path, encoded: data.Encoded, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    calls, ask = [], students.ask

    def dies(model, batch):  # type: ignore[no-untyped-def]
        calls.append(len(batch))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return ask(model, batch)

    monkeypatch.setattr(students, "ask", dies)
    key = cache.fingerprint(teacher, ENCODE, CPU)
    with pytest.raises(KeyboardInterrupt):
        cache.build(tmp_path, students.load(teacher), encoded, key, CONFIG, CPU)
    assert [file.name for file in tmp_path.iterdir()] == ["shard-00000.arrow"]  # whole, and nothing beside it
    assert cache.build(tmp_path, students.load(teacher), encoded, key, CONFIG, CPU) == len(encoded) - 20


def test_what_does_not_fit_is_refused(tmp_path: Path, teacher: Path, encoded: data.Encoded) -> None:
    folder = tmp_path / "cache"
    opened = built(folder, teacher, part(encoded, 30))
    key = cache.fingerprint(teacher, ENCODE, CPU)
    for name, value in {"teacher": "0" * 64, "tokenizer": "1" * 64, "max_length": 99}.items():
        with pytest.raises(cache.CacheError, match=f"made with another {name}: expected {value}"):
            cache.Cache(folder, replace(key, **{name: value}))
    with pytest.raises(cache.CacheError, match=rf"no words on {len(encoded) - 30} of {len(encoded)} rows"):
        opened.on(encoded)
    assert (
        cache.Cache(folder, replace(key, precision="float8")).idx.size == 30
    )  # made on another machine: verify decides
    moved = replace(encoded, idx=encoded.idx + 1)
    with pytest.raises(cache.CacheError, match="no words on 30 of 30 rows"):
        opened.on(part(moved, 30))
    with pytest.raises(cache.CacheError, match="no teacher cache; run `dvc repro`"):
        cache.Cache(tmp_path / "nowhere", key)


def test_words_of_other_rows_are_found_out(tmp_path: Path, teacher: Path, encoded: data.Encoded) -> None:
    opened = built(tmp_path, teacher, encoded)
    logits = opened.columns["logits"]
    assert logits.std(axis=0).min() > 5 * CONFIG.tolerance  # or nothing here would show
    opened.columns = {"logits": logits[::-1].copy()}
    with pytest.raises(cache.CacheError, match="the live teacher differs from the cache by"):
        opened.verify(encoded, students.load(teacher), CONFIG, CPU)


def test_a_text_may_come_again_under_another_number(tmp_path: Path, teacher: Path, encoded: data.Encoded) -> None:
    built(tmp_path, teacher, encoded)
    again = replace(encoded, idx=encoded.idx + 1000)
    opened = built(tmp_path, teacher, again)
    chosen = np.arange(len(encoded))
    torch.testing.assert_close(opened.on(again).take(chosen), opened.on(encoded).take(chosen))


def test_remains_of_a_killed_build_go(tmp_path: Path, teacher: Path, encoded: data.Encoded) -> None:
    (tmp_path / ".77-shard-00003.arrow").write_bytes(b"half")
    built(tmp_path, teacher, part(encoded, 10))
    assert [file.name for file in tmp_path.iterdir()] == ["shard-00000.arrow"]


def test_another_teachers_words_are_found_out(tmp_path: Path, teacher: Path, encoded: data.Encoded) -> None:
    opened, other = built(tmp_path, teacher, encoded), students.load(teacher)
    with torch.no_grad():
        other.classifier.bias += 1.0
    with pytest.raises(cache.CacheError, match="the live teacher differs from the cache by"):
        opened.verify(encoded, other, CONFIG, CPU)


def test_a_damaged_shard_is_refused_and_made_again(tmp_path: Path, teacher: Path, encoded: data.Encoded) -> None:
    built(tmp_path, teacher, encoded)
    shard = tmp_path / "shard-00001.arrow"
    shard.write_bytes(shard.read_bytes()[:-200])
    key = cache.fingerprint(teacher, ENCODE, CPU)
    with pytest.raises(cache.CacheError, match=r"shard-00001.arrow: damaged shard"):
        cache.Cache(tmp_path, key)
    assert cache.build(tmp_path, students.load(teacher), encoded, key, CONFIG, CPU) == 20
    assert len(cache.Cache(tmp_path, key).on(encoded).at) == len(encoded)


def test_any_encoder_may_teach(tmp_path: Path, encoded: data.Encoded) -> None:
    shape = DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=32, vocab_size=40, num_labels=2)
    DistilBertForSequenceClassification(shape).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    opened = built(tmp_path / "cache", tmp_path / "teacher", encoded)
    assert opened.on(encoded).take(np.array([0, 1]))["logits"].shape == (2, 2)
