"""What runs are compared by: the same few names, whatever the method."""

import hashlib
import json
import statistics
from typing import Any


def run_key(*provenance: Any) -> str:
    """Twelve hex digits of what a run was made with: by them it is found again."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:12]


def training_fields(provenance: dict[str, Any]) -> dict[str, Any]:
    """Batch size and learning rate of the last phase; epochs are not comparable between methods, `steps` are."""
    phases = [name.removesuffix("learning_rate") for name in provenance if name.endswith("/learning_rate")]
    return {name: provenance[phases[-1] + name] for name in ("batch_size", "learning_rate")} if phases else {}


def shape_fields(found: dict[str, Any]) -> dict[str, int]:
    """Layers and width of a shape as `measure.shape` tells it; a BiLSTM is one layer, as wide as both directions."""
    if "lstm" in found:
        return {"layers": 1, "width": 2 * found["lstm"]}
    return {"layers": found["layers"], "width": found["hidden"]}


def test_score(figures: dict[str, Any]) -> float:
    """The test score in points; the mean over the test sets where a task has several."""
    return 100 * statistics.mean(v["score"] for name, v in figures.items() if name.startswith("test"))


def cost_fields(figures: dict[str, Any]) -> dict[str, float]:
    """What a model costs, steps included: `parameters`, `smaller`, `faster_1`, `faster_32` and so on."""
    plain = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    timed = {
        f"{name}_{batch.removeprefix('batch_')}": value
        for name in ("faster", "milliseconds")
        for batch, value in figures[name].items()
    }
    return plain | timed
