"""How much memory building and reading a cache takes, beyond mapped files, for a number of synthetic rows."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import typer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.memory import peak
from filbert.cache import build, teacher_cache
from filbert.data import batches, tasks
from filbert.data.arrow import read_table

WORDS = [f"w{i}" for i in range(1000)]
COLUMNS = ("logits", "hidden.0", "hidden.1", "hidden.2")
CONFIG = teacher_cache.CacheConfig("float16", batch_size=256, shard_mb=512, budget_gb=50, verify_rows=8, tolerance=0.05)
CHUNK = 10_000


def main(count: int) -> None:
    """Print megabytes: the cache, the peak while building, the peak while reading every row once in batches."""
    with tempfile.TemporaryDirectory(prefix="filbert-bench-") as folder:
        measure(count, Path(folder))


def measure(count: int, folder: Path) -> None:
    task = tasks.find("sst2")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), unk_token="[UNK]", pad_token="[PAD]")
    shape = BertConfig(
        vocab_size=len(WORDS) + 2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    teacher, cpu, key = (
        BertForSequenceClassification(shape),
        torch.device("cpu"),
        teacher_cache.Fingerprint("t", "t", 16, "float16", "any"),
    )
    table = _rows(folder / "rows.arrow", count)

    def encode(part: pa.Table) -> batches.TokenizedDataset:
        return batches.tokenize(part, task, tokenizer, batches.TokenizerConfig(16))

    def make(name: str, part: pa.Table) -> teacher_cache.TeacherCache:
        build.build_cache(folder / name, teacher, part, encode, COLUMNS, key, CONFIG, cpu)
        return teacher_cache.TeacherCache([folder / name], key)

    make("warm", table.slice(0, 256))
    with peak() as building:
        opened = make("kept", table)
    with peak() as reading:
        for start in range(0, count, CHUNK):
            part = encode(table.slice(start, CHUNK))
            words = opened.on(part, COLUMNS)
            for at in np.array_split(np.arange(len(part)), len(part) // 32):
                words.take(at)
    print(f"{opened.bytes / 1e6:.0f} {building[0]:.0f} {reading[0]:.0f}")


def _rows(file: Path, count: int) -> pa.Table:
    """A memory-mapped table of `count` rows, written some at a time."""
    draw = np.random.default_rng(0)
    schema = pa.schema({"idx": pa.int32(), "sentence": pa.string(), "label": pa.int32(), "hash": pa.int64()})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        for start in range(0, count, CHUNK):
            texts = [" ".join(WORDS[i] for i in row) for row in draw.integers(len(WORDS), size=(CHUNK, 12))]
            idx = np.arange(start, start + CHUNK, dtype=np.int32)
            out.write_batch(pa.record_batch([idx, texts, idx % 2, idx.astype(np.int64) * 7919], schema=schema))
    return read_table(file)


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


if __name__ == "__main__":
    typer.run(main)
