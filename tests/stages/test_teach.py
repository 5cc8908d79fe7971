"""The teacher: the best of several seeds by validation."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tiny import PARAMS, find_task

from filbert.data import arrow, splits
from filbert.models.checkpoints import read_weights
from filbert.runtime.config import ConfigError
from filbert.tracking.history import count_steps, read_history
from stages.teach import teach


@pytest.fixture
def settle(tmp_path: Path, store: Path, prepared: splits.Prepared):  # type: ignore[no-untyped-def]
    """Writes params.yaml with these seeds beside the rows of a task."""
    for name, table in prepared.tables.items():
        arrow.write_rows(table.to_pylist(), find_task("sst2"), tmp_path / "prepared" / f"{name}.arrow")

    def write(*seeds: int, validations: int = 2, fraction: float = 1.0) -> None:
        yaml = YAML()
        params = yaml.load(PARAMS)
        params["task_table"]["sst2"]["training_fraction"] = fraction
        fit = {"epochs": 2, "batch_size": 8, "learning_rate": 1.0e-3, "validations": validations, "min_steps": 0}
        params["teacher"] = {"seeds": list(seeds), "training": fit}
        yaml.dump(params, tmp_path / "params.yaml")

    return write


def test_the_best_of_several_seeds_is_kept(tmp_path: Path, settle, checkpoint: Path) -> None:  # type: ignore[no-untyped-def]
    best: dict[str, float] = {}
    for seeds in ((3,), (4,), (3, 4)):
        settle(*seeds)
        name = "-".join(map(str, seeds))
        teach("sst2", Path("prepared"), checkpoint, tmp_path / name)
        history = read_history(tmp_path / name / "history.jsonl")
        best |= {f"{name} {line['phase']}": line["best"] for line in history if "best" in line}
    assert (best["3-4 train-3"], best["3-4 train-4"]) == (best["3 train"], best["4 train"])
    chosen = max(("3", "4"), key=lambda seed: best[f"{seed} train"])
    kept, alone = read_weights(tmp_path / "3-4"), read_weights(tmp_path / chosen)
    assert all((kept[name] == value).all() for name, value in alone.items())


def test_seeds_that_cannot_be_chosen_from_are_refused(tmp_path: Path, settle, checkpoint: Path) -> None:  # type: ignore[no-untyped-def]
    for seeds, validations in (((), 2), ((1, 2), 0)):
        settle(*seeds, validations=validations)
        with pytest.raises(ConfigError, match="expected a seed, and validations"):
            teach("sst2", Path("prepared"), checkpoint, tmp_path / "teacher")


def test_a_task_may_ask_for_a_part_of_the_training(tmp_path: Path, settle, checkpoint: Path) -> None:  # type: ignore[no-untyped-def]
    steps = {}
    for fraction in (1.0, 0.5):
        settle(3, fraction=fraction)
        teach("sst2", Path("prepared"), checkpoint, tmp_path / str(fraction))
        steps[fraction] = count_steps(tmp_path / str(fraction) / "history.jsonl")
    assert steps[0.5] == steps[1.0] / 2
