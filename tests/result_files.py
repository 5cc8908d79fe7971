"""What stages.evaluate writes of one student, made up: figures, details and test rows; and settings of the report."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filbert.evaluation.statistics import ReportConfig

CONFIG = ReportConfig(
    "finetune",
    {"refbert": ("kd", "finetune")},
    same_size=0.05,
    same_steps=0.005,
    margin=0.5,
    margins={"matthews": 3.0},
    confidence=0.95,
)


def figures(score: float, size: int) -> dict:
    return {"test": {"score": score, "accuracy": score}, "validation": {"score": 0.1}, "parameters": size, "bytes": 4 * size,
            "multiply_adds": 2 * size, "smaller": 1e6 / size, "faster": {"batch_1": 2.0, "batch_32": 3.0},
            "milliseconds": {"batch_1": 5.0, "batch_32": 50.0}, "steps": 10, "step_budget": 10}  # fmt: skip


def details(**more: object) -> dict:
    machine = {"processor": "P", "flags": "avx2"}
    return {"shape": {"layers": 3, "hidden": 16}, "tokens": 9, "threads": 1, "machine": machine,
            "curve": [{"phase": "p", "step": 5, "score": 0.5}], "teacher": "abc",
            "provenance": {"fit/epochs": 2, "rows": "r1", "seed": "7"}} | more  # fmt: skip


def write_rows(file: Path, score: float, seed: int = 0, rows: int = 1000) -> None:
    """Test rows of a task of two classes with this accuracy; of a larger seed later rows are wrong, most of them the same."""
    wrong = (np.arange(rows) - 20 * seed) % rows >= round(score * rows)
    logits = np.stack([wrong, ~wrong], 1).astype(np.float32)
    file.parent.mkdir(parents=True, exist_ok=True)
    label, idx = np.ones(rows, np.int32), np.arange(rows, dtype=np.int32)
    pq.write_table(pa.table({"split": ["test"] * rows, "idx": idx, "label": label, "logits": list(logits)}), file)
