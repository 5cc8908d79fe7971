"""Fields by which runs are compared in MLflow: the same few names for every method."""

import hashlib
import json
import statistics
from typing import Any


def run_key(*provenance: Any) -> str:
    """Twelve hex digits of a hash of the provenance, by which a run is found again."""
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:12]


def training_fields(provenance: dict[str, Any]) -> dict[str, Any]:
    """Batch size and learning rate of the last phase. Epochs are left out: methods count them differently; `steps` compare."""
    phases = [name.removesuffix("learning_rate") for name in provenance if name.endswith("/learning_rate")]
    return {name: provenance[phases[-1] + name] for name in ("batch_size", "learning_rate")} if phases else {}


def shape_fields(shape: dict[str, Any]) -> dict[str, int]:
    """Layers and width of a shape (models.size.model_shape); a BiLSTM is one layer, as wide as both directions."""
    if "lstm" in shape:
        return {"layers": 1, "width": 2 * shape["lstm"]}
    return {"layers": shape["layers"], "width": shape["hidden"]}


def test_score(figures: dict[str, Any]) -> float:
    """The test score in points; the mean over the test sets where a task has several."""
    return 100 * statistics.mean(v["score"] for name, v in figures.items() if name.startswith("test"))


def cost_fields(figures: dict[str, Any]) -> dict[str, float]:
    """The cost of a model, training steps included: `parameters`, `smaller`, `faster_1`, `faster_32` and so on."""
    plain = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    timed = {
        f"{name}_{batch.removeprefix('batch_')}": value
        for name in ("faster", "milliseconds")
        for batch, value in figures.get(name, {}).items()
    }
    return plain | timed
