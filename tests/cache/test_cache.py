"""The cache equals a live forward, appends only what is missing, and refuses whatever does not fit."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import find_task, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification

from filbert import FilbertError
from filbert.cache import build, teacher_cache
from filbert.cache.shards import ShardFolder
from filbert.data import batches, splits
from filbert.data.arrow import Partition
from filbert.models import checkpoints, intermediate_outputs
from filbert.runtime import device

CPU = torch.device("cpu")
CONFIG = teacher_cache.CacheConfig("float16", batch_size=8, shard_mb=1, budget_gb=1, verify_rows=8, tolerance=0.02)
ENCODE = batches.TokenizerConfig(16)
SST2 = find_task("sst2")
SOME = ("logits", "hidden.0", "attention.2")
EVERY = (*SOME, "pooled", "hidden.2", "words.2", "values.1")


def encode(table: pa.Table) -> batches.TokenizedDataset:
    return batches.tokenize(table, SST2, tiny_tokenizer(), ENCODE, words=True)


def key(teacher: Path, config: teacher_cache.CacheConfig = CONFIG) -> teacher_cache.Fingerprint:
    return teacher_cache.cache_fingerprint(teacher, ENCODE, config, CPU)


def filled(
    folder: Path,
    teacher: Path,
    table: pa.Table,
    names: tuple[str, ...] = SOME,
    config: teacher_cache.CacheConfig = CONFIG,
) -> int:
    model = checkpoints.load_model(teacher)
    return build.build_cache(folder, model, table, encode, names, key(teacher, config), config, CPU)


@pytest.fixture
def table(prepared: splits.Prepared) -> pa.Table:
    return prepared.tables["train"]


@pytest.fixture
def rows(table: pa.Table) -> batches.TokenizedDataset:
    return encode(table)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of at most 20 rows whatever they hold."""
    monkeypatch.setattr(build, "CHUNK", 10)
    monkeypatch.setattr(
        build._TeacherRunner,
        "bytes_per_row",
        lambda self, sample, columns: dict.fromkeys(columns, 1e6 / 20 / len(columns)),
    )


def test_cached_words_equal_transformers_own(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second truth is the eager model of transformers, which returns states and attention itself."""
    monkeypatch.setattr(device, "precision", lambda _: "float32")
    filled(tmp_path, teacher, table, EVERY)
    chosen = np.array([5, 0, 41])
    batch = rows.with_targets(teacher_cache.TeacherCache([tmp_path], key(teacher)).on(rows, EVERY)).batch(chosen)
    eager = AutoModelForSequenceClassification.from_pretrained(teacher, attn_implementation="eager").eval()
    with torch.inference_mode():
        live = eager(batch.ids, batch.mask.long(), batch.types, output_hidden_states=True, output_attentions=True)
    said, real = batch.targets, batch.mask[..., None]
    close = {"atol": 2e-3, "rtol": 2e-3}  # of float16
    torch.testing.assert_close(said["logits"], live.logits.float(), **close)
    for layer in (0, 2):
        torch.testing.assert_close(said[f"hidden.{layer}"].float(), live.hidden_states[layer].float() * real, **close)
    scores = said["attention.2"].float().masked_fill(~batch.mask[:, None, None, :], -torch.inf)
    torch.testing.assert_close(scores.softmax(-1) * real[:, None], live.attentions[1].float() * real[:, None], **close)
    with torch.inference_mode():
        torch.testing.assert_close(eager.classifier(said["pooled"].float()), live.logits.float(), **close)
        values = (
            eager.bert.encoder.layer[0]
            .attention.self.value(live.hidden_states[0].float())
            .unflatten(-1, (4, 4))
            .transpose(1, 2)
        )
    relations = values @ values.transpose(-1, -2) / 2 * (real & real.transpose(1, 2))[:, None]
    torch.testing.assert_close(said["values.1"].float(), relations, **close)


def test_without_states_the_last_layer_is_that_of_the_first_token(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset
) -> None:
    model, widths = checkpoints.as_filbert(checkpoints.load_model(teacher)), []
    model.bert.encoder.layer[-1].intermediate["dense"].register_forward_hook(
        lambda _, given, __: widths.append(given[0].shape[1])
    )
    for folder, columns in (("whole", ("logits", "pooled", "hidden.2")), ("first", ("logits", "pooled"))):
        build.build_cache(tmp_path / folder, model, table, encode, columns, key(teacher), CONFIG, CPU)
    half = len(widths) // 2
    assert min(widths[:half]) > 1
    assert set(widths[half:]) == {1}
    whole, first = (
        teacher_cache.TeacherCache([tmp_path / folder], key(teacher)).on(rows, ["logits", "pooled"]).take(np.arange(20))
        for folder in ("whole", "first")
    )
    for column, values in whole.items():
        assert (values - first[column]).norm() <= CONFIG.tolerance * values.norm(), column


def test_int8_keeps_a_scale_per_vector(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset
) -> None:
    small = replace(CONFIG, states="int8")
    filled(tmp_path / "float16", teacher, table, EVERY)
    filled(tmp_path / "int8", teacher, table, EVERY, small)
    exact, coarse = (
        teacher_cache.TeacherCache([tmp_path / c.states], key(teacher, c)).on(rows, EVERY).take(np.arange(9))
        for c in (CONFIG, small)
    )
    assert torch.equal(exact["logits"], coarse["logits"])
    for column in EVERY[1:]:
        step = exact[column].float().abs().amax(-1, keepdim=True) / 127
        assert ((exact[column].float() - coarse[column]).abs() <= 0.51 * step + 2e-3).all(), column


def test_words_are_what_tokenizers_share(tmp_path: Path, teacher: Path, table: pa.Table) -> None:
    filled(tmp_path, teacher, table, ("words.2", "hidden.2"))
    opened, theirs = teacher_cache.TeacherCache([tmp_path], key(teacher)), encode(table)
    other = replace(theirs, ids=theirs.ids + 1)  # a student that cuts words into tokens of its own
    batch = other.with_targets(opened.on(other, ["words.2"])).batch(np.array([0, 3]))
    states = opened.on(theirs, ["hidden.2"]).take(np.array([0, 3]))["hidden.2"]
    torch.testing.assert_close(
        batch.targets["words.2"], intermediate_outputs.first_token_states(states, theirs.batch(np.array([0, 3])))
    )
    with pytest.raises(
        teacher_cache.CacheError, match=r"`hidden.2` belongs to the teacher's tokens, but \d+ of \d+ rows"
    ):
        opened.on(other, ["hidden.2"])


def test_only_missing_rows_are_asked(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset, small_shards: None
) -> None:
    asked = [filled(tmp_path, teacher, part) for part in (table.slice(0, 30), table, table)]
    assert asked == [30, len(table) - 30, 0]
    assert len(teacher_cache.TeacherCache([tmp_path], key(teacher)).on(rows, SOME).numbers["logits"]) == len(table)
    assert len(list(tmp_path.glob("*.arrow"))) == 2 + -(-(len(table) - 30) // 20)


def test_parts_are_filled_apart_and_read_as_one(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset
) -> None:
    parts = Partition(3, (0, 1, 2))
    asked = [filled(tmp_path / str(part), teacher, parts.share(table, part)) for part in parts.indices]
    assert sum(asked) == len(table)
    assert min(asked) > 0
    filled(tmp_path / "whole", teacher, table)
    many = teacher_cache.TeacherCache(parts.folders(tmp_path), key(teacher))
    one = teacher_cache.TeacherCache([tmp_path / "whole"], key(teacher))
    chosen = np.array([7, 0, 31, 2])
    for column, values in many.on(rows, SOME).take(chosen).items():
        torch.testing.assert_close(values, one.on(rows, SOME).take(chosen)[column], atol=2e-2, rtol=1e-2)
    more = pa.concat_tables(
        [table, table.slice(0, 9).set_column(table.column_names.index("hash"), "hash", [np.arange(9)])]
    )
    assert (
        sum(filled(tmp_path / str(part), teacher, parts.share(more, part)) for part in parts.indices) == 9
    )  # no other row has moved
    filled(tmp_path / "3", teacher, table.slice(0, 0))
    with_nothing = teacher_cache.TeacherCache(
        [tmp_path / "3", *(tmp_path / str(part) for part in parts.indices)], key(teacher)
    )
    assert len(with_nothing.on(rows, SOME).numbers["logits"]) == len(table)
    with pytest.raises(teacher_cache.CacheError, match=r"4: no teacher cache; run `dvc repro`"):
        teacher_cache.TeacherCache([tmp_path / "0", tmp_path / "4"], key(teacher))
    with pytest.raises(FilbertError, match=r"expected a partition below partitions\.count = 3, got 3"):
        parts.share(table, 3)
    with pytest.raises(FilbertError, match=r"partitions: expected indices \[0, 1\] for count 2, got \[0, 0\]"):
        Partition(2, (0, 0))


def test_only_missing_columns_are_asked(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset
) -> None:
    asked = [filled(tmp_path, teacher, table, names) for names in (("logits",), SOME, ("logits",))]
    assert asked == [len(table), len(table), 0]
    opened = teacher_cache.TeacherCache([tmp_path], key(teacher))
    assert [entry.columns for entry in opened.parts[0].entries.values()] == [("logits",), ("hidden.0", "attention.2")]
    model = checkpoints.load_model(teacher)
    assert max(opened.verify(rows.select(np.arange(8)), SOME, model, CONFIG, CPU).values()) < 0.05


def test_a_killed_run_goes_on(
    tmp_path: Path, teacher: Path, table: pa.Table, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, ask = [], checkpoints.forward_batch

    def dies(model, batch, *more):  # type: ignore[no-untyped-def]
        calls.append(len(batch))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return ask(model, batch, *more)

    monkeypatch.setattr(checkpoints, "forward_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, teacher, table)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "manifest.json",
        "shard-00000.arrow",
    ]  # nothing half-written
    (tmp_path / ".77-shard-00003.arrow").write_bytes(b"half")  # as kill -9 leaves it
    (tmp_path / "shard-00001.arrow").write_bytes(b"whole, but not listed yet")
    assert filled(tmp_path, teacher, table) == len(table) - 20
    assert not list(tmp_path.glob(".*"))


def test_shards_of_a_killed_run_are_those_of_one_that_was_not(
    tmp_path: Path, teacher: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its later rows are longer than those that it had done."""
    by_length = sorted(range(len(table)), key=lambda row: len(table["sentence"][row].as_py()))
    table, small = table.take(by_length), replace(CONFIG, shard_mb=0.02)
    monkeypatch.setattr(build, "CHUNK", 4)
    filled(tmp_path / "whole", teacher, table, config=small)
    shards, append = [], ShardFolder.append

    def dies(self: ShardFolder, *more: object) -> object:
        if len(shards) == 1:
            raise KeyboardInterrupt
        shards.append(more)
        return append(self, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardFolder, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path / "killed", teacher, table, config=small)
    monkeypatch.setattr(ShardFolder, "append", append)
    filled(tmp_path / "killed", teacher, table, config=small)
    names = sorted(file.name for file in (tmp_path / "whole").glob("*.arrow"))
    assert len(names) > 2
    for name in [*names, "manifest.json"]:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_does_not_fit_is_refused(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset
) -> None:
    folder = tmp_path / "cache"
    filled(folder, teacher, table.slice(0, 30))
    right = key(teacher)
    for name, value in {"teacher": "0" * 64, "tokenizer": "1" * 64, "max_length": 99, "states": "int8"}.items():
        with pytest.raises(teacher_cache.CacheError, match=f"made with another {name}: expected {value}"):
            teacher_cache.TeacherCache([folder], replace(right, **{name: value})).on(rows, ["logits"])
    opened = teacher_cache.TeacherCache([folder], right)
    with pytest.raises(teacher_cache.CacheError, match=rf"no outputs for {len(table) - 30} of {len(table)} rows"):
        opened.on(rows, ["logits"])
    with pytest.raises(teacher_cache.CacheError, match=r"no column `hidden.1`, only attention.2, hidden.0, logits"):
        opened.on(rows, ["hidden.1"])
    other = teacher_cache.TeacherCache(
        [folder], replace(right, precision="float8")
    )  # made on another machine: verify decides
    first = rows.select(np.arange(30))
    assert len(other.on(first, ["logits"]).numbers["logits"]) == 30
    with pytest.raises(teacher_cache.CacheError, match="no outputs for 30 of 30 rows"):
        opened.on(replace(first, idx=first.idx + 1), ["logits"])
    with pytest.raises(teacher_cache.CacheError, match="no teacher cache; run `dvc repro`"):
        teacher_cache.TeacherCache([tmp_path / "nowhere"], right)


def test_a_cache_over_the_budget_is_not_begun(tmp_path: Path, teacher: Path, table: pa.Table) -> None:
    with pytest.raises(
        teacher_cache.CacheError,
        match=r"would take .* GB \(0 exist; new are attention.2 .*\), over cache.budget_gb = 1e-06; lower",
    ):
        filled(tmp_path, teacher, table, config=replace(CONFIG, budget_gb=1e-6))
    assert not list(tmp_path.iterdir())
    filled(tmp_path, teacher, table)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    with pytest.raises(teacher_cache.CacheError, match=r"over cache.budget_gb"):
        filled(tmp_path, teacher, table, config=replace(CONFIG, states="int8", budget_gb=1e-6))
    assert before == {
        file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()
    }  # what was there is there still
    assert (
        filled(tmp_path, teacher, table, config=replace(CONFIG, budget_gb=1e-6)) == 0
    )  # nothing to come, nothing to refuse


def test_the_estimate_is_the_size(
    tmp_path: Path, teacher: Path, table: pa.Table, capsys: pytest.CaptureFixture
) -> None:
    filled(tmp_path, teacher, table, EVERY)
    said = float(capsys.readouterr().err.split(" GB of ")[0].split()[-1]) * 1e9
    assert said == pytest.approx(sum(file.stat().st_size for file in tmp_path.glob("*.arrow")), rel=0.25)


def test_words_of_other_rows_and_other_teachers_are_found_out(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset
) -> None:
    filled(tmp_path, teacher, table)
    opened, other, sample = (
        teacher_cache.TeacherCache([tmp_path], key(teacher)),
        checkpoints.load_model(teacher),
        rows.select(np.arange(0, 40, 5)),
    )
    opened.verify(sample, SOME, other, CONFIG, CPU)
    with torch.no_grad():
        other.classifier.bias += 1.0
    with pytest.raises(teacher_cache.CacheError, match="`logits` of the live teacher differs from the cache by"):
        opened.verify(sample, SOME, other, CONFIG, CPU)
    turned = replace(sample, ids=sample.ids[::-1].copy())
    with pytest.raises(teacher_cache.CacheError, match="`logits` of the live teacher differs from the cache by"):
        opened.verify(turned, ["logits"], checkpoints.load_model(teacher), CONFIG, CPU)


def test_a_text_may_come_again_under_another_number(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset
) -> None:
    again = table.set_column(0, "idx", pa.array(table["idx"].to_numpy() + 1000))
    filled(tmp_path, teacher, table)
    filled(tmp_path, teacher, again)
    opened, chosen = teacher_cache.TeacherCache([tmp_path], key(teacher)), np.arange(len(table))
    torch.testing.assert_close(opened.on(encode(again), SOME).take(chosen), opened.on(rows, SOME).take(chosen))


@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_shard_is_refused_and_made_again(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset, small_shards: None, how: str
) -> None:
    filled(tmp_path, teacher, table)
    shard, manifest = tmp_path / "shard-00001.arrow", (tmp_path / "manifest.json").read_text()
    whole = shard.read_bytes()
    changed = {"cut": whole[:-200], "changed": whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:]}
    shard.unlink() if how == "gone" else shard.write_bytes(changed[how])
    with pytest.raises(
        teacher_cache.CacheError, match=r"shard-00001.arrow: (damaged: expected|missing).*; run `dvc repro`"
    ):
        teacher_cache.TeacherCache([tmp_path], key(teacher)).on(rows, SOME)
    assert filled(tmp_path, teacher, table) == 20
    assert (shard.read_bytes(), (tmp_path / "manifest.json").read_text()) == (whole, manifest)


def test_the_manifest_of_another_partition_is_refused_even_where_no_column_is_read(
    tmp_path: Path, teacher: Path, table: pa.Table
) -> None:
    folders = [tmp_path / "0", tmp_path / "1"]
    filled(folders[0], teacher, table.slice(0, 30))
    filled(folders[1], teacher, table.slice(30))
    shutil.copyfile(folders[1] / "manifest.json", folders[0] / "manifest.json")
    with pytest.raises(
        teacher_cache.CacheError, match=r"0/shard-00000.arrow: damaged: expected \d+ bytes, found \d+; run `dvc"
    ):
        teacher_cache.TeacherCache(folders, key(teacher))


def test_any_encoder_may_teach(tmp_path: Path, table: pa.Table, rows: batches.TokenizedDataset) -> None:
    shape = DistilBertConfig(dim=16, n_layers=2, n_heads=4, hidden_dim=32, vocab_size=40, num_labels=2)
    DistilBertForSequenceClassification(shape).save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    filled(tmp_path / "cache", tmp_path / "teacher", table, ("logits", "hidden.2", "pooled"))
    opened = teacher_cache.TeacherCache([tmp_path / "cache"], key(tmp_path / "teacher"))
    assert opened.on(rows, ["logits"]).take(np.array([0, 1]))["logits"].shape == (2, 2)
    with pytest.raises(
        intermediate_outputs.ActivationError, match=r"DistilBert.* has no module `layer.0.attention.self"
    ):
        filled(tmp_path / "other", tmp_path / "teacher", table, ("attention.1",))


def test_a_column_that_is_not_there_is_named(teacher: Path) -> None:
    model = checkpoints.load_model(teacher)
    for column, words in {"hiden.1": "no column `hiden.1`", "hidden": "no column `hidden`", "attention.0": "from 1 to 2, got 0",
                          "hidden.3": "from 0 to 2, got 3", "logits.1": "no column `logits.1`"}.items():  # fmt: skip
        with pytest.raises(intermediate_outputs.ActivationError, match=words):
            intermediate_outputs.ActivationRecorder(model, [column])


def test_reading_maps_and_does_not_load(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset
) -> None:
    filled(tmp_path, teacher, table)
    views = teacher_cache.TeacherCache([tmp_path], key(teacher)).column("hidden.0").values.values
    assert not any(view.flags.owndata for view in views)
    assert not any(view.flags.writeable for view in views)


@pytest.mark.parametrize("damage", ["cut", "no mapping", "forged"])
def test_a_damaged_or_forged_manifest_is_set_aside_and_the_shards_are_made_again(
    tmp_path: Path,
    teacher: Path,
    table: pa.Table,
    rows: batches.TokenizedDataset,
    capsys: pytest.CaptureFixture,
    damage: str,
) -> None:
    folder, outside = tmp_path / "cache", tmp_path / "canary.arrow"
    outside.write_bytes(b"not the cache's")
    filled(folder, teacher, table)
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    forged = whole.replace("shard-00000.arrow", "../canary.arrow")
    manifest.write_text({"cut": whole[:40], "no mapping": "[1]", "forged": forged}[damage])
    with pytest.raises(teacher_cache.CacheError, match=r"manifest\.json: damaged: expected .*; run `dvc repro`"):
        teacher_cache.TeacherCache([folder], key(teacher))
    assert filled(folder, teacher, table) == len(table)
    assert "moved to .cache.manifest.json.damaged, all shards are made again" in capsys.readouterr().err
    assert (tmp_path / ".cache.manifest.json.damaged").exists()
    assert outside.read_bytes() == b"not the cache's"
    assert len(teacher_cache.TeacherCache([folder], key(teacher)).on(rows, SOME).numbers["logits"]) == len(table)


def test_cached_values_do_not_depend_on_shards_and_other_columns(
    tmp_path: Path, teacher: Path, table: pa.Table, rows: batches.TokenizedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CHUNK", 16)
    found = []
    for name, columns, shard_rows in (("few", ("logits",), 16), ("more", ("logits", "hidden.1", "attention.1"), 1000)):
        sizes = dict.fromkeys(columns, 1e6 / shard_rows / len(columns))
        monkeypatch.setattr(build._TeacherRunner, "bytes_per_row", lambda self, sample, columns, sizes=sizes: sizes)
        filled(tmp_path / name, teacher, table, columns)
        cache = teacher_cache.TeacherCache([tmp_path / name], key(teacher))
        found.append(cache.on(rows, ("logits",)).take(np.arange(len(rows)))["logits"])
    assert torch.equal(*found)
