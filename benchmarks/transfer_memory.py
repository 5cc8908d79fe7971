"""How much memory collecting transfer rows takes, and how fast it goes, for a number of synthetic sentences."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import typer

from benchmarks.memory import peak
from filbert.data import arrow, tasks
from filbert.text.transfer import FilterConfig, HeldOutRows, Texts, TransferFilter, to_rows

WORDS = [f"w{i}" for i in range(20_000)]
HELD_OUT = 2000
CHUNK = 10_000


def main(count: int) -> None:
    """Print the rows kept of COUNT, megabytes at the peak, rows a second."""
    task, config = tasks.find("sst2"), FilterConfig(4, 40, 4, 0.3, 0.5, count)
    with tempfile.TemporaryDirectory(prefix="filbert-bench-") as folder, peak() as most:
        began = time.perf_counter()
        kept = TransferFilter(_sentences(HELD_OUT, 1), HeldOutRows(_sentences(HELD_OUT, 2), config.shingle), config)
        made = to_rows(kept.sample("synthetic", lambda: _sentences(count, 3)), task)
        written = arrow.write_rows(made, task, Path(folder) / "transfer.arrow")
        took = time.perf_counter() - began
    print(f"{written} rows, {most[0]:.0f} MB, {count / took:.0f} rows/s")


def _sentences(count: int, seed: int) -> Iterator[Texts]:
    draw = np.random.default_rng(seed)
    for _ in range(0, count, CHUNK):
        for row in draw.integers(len(WORDS), size=(min(CHUNK, count), 20)):
            yield (" ".join(WORDS[i] for i in row),)


if __name__ == "__main__":
    typer.run(main)
