"""What a change makes stale, in the tiny graph once it has been run: DVC is asked, nothing is run again."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tiny_graph import METHODS

from pipelines.dvc_graph import find_changed

ENDS = {"latency@sst2", "report"}  # all students are timed side by side, and stand in one table
VARIANT, CHAIN = "sst2-variant0-1", "sst2-chain0-1"  # mixed_vocab by kd; theseus_rosita from theseus
OF_KD = {"distill@sst2-kd-1", "evaluate@sst2-kd-1", f"distill_variant@{VARIANT}", f"evaluate_variant@{VARIANT}"}
OF_THESEUS = {"distill@sst2-theseus-1", "evaluate@sst2-theseus-1", f"prune@{CHAIN}", f"evaluate_chain@{CHAIN}"}
TOY = "from filbert.methods.finetune import Config, columns, compress\n"


@contextmanager
def written(file: Path, text: str) -> Iterator[None]:
    """A file with this text, as it was before afterwards."""
    before = file.read_text() if file.exists() else None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    try:
        yield
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_text(before)


def stale(clone: Path, files: dict[str, str], **settings: Any) -> set[str]:
    """The stages that `make repro` would run with a text appended to these files and these dotted settings (`__` is a dot)."""
    params = clone / "params.yaml"
    document = YAML(typ="safe").load(params)
    for name, value in settings.items():
        *path, key = name.split("__")
        section = document
        for part in path:
            section = section[part]
        section[key] = section[key] + value if isinstance(section.get(key), list) else value
    edits = {
        clone / name: (clone / name).read_text() + text if (clone / name).exists() else text
        for name, text in files.items()
    }
    text = params.read_text()
    if settings:
        with params.open("w") as stream:
            YAML(typ="safe").dump(document, stream)
    try:
        return _stale(clone, list(edits.items()))
    finally:
        params.write_text(text)


def _stale(clone: Path, edits: list[tuple[Path, str]]) -> set[str]:
    if not edits:
        return {stage.name for stage in find_changed(clone, [])[1]}
    with written(*edits[0]):
        return _stale(clone, edits[1:])


def test_nothing_is_stale_at_first(clone: Path, reproduced: str) -> None:
    assert stale(clone, {}) == set()


def test_a_methods_setting_makes_stale_what_that_method_makes_and_what_stands_on_it(
    clone: Path, reproduced: str
) -> None:
    """Variants of the method and chains from it, too; no other student."""
    assert stale(clone, {}, settings__theseus__schedule="anti") == OF_THESEUS | ENDS
    assert stale(clone, {}, settings__kd__temperature=3.5) == OF_KD | ENDS
    assert (
        stale(clone, {}, settings__mixed_vocab={})
        == {f"{s}@{VARIANT}" for s in ("distill_variant", "evaluate_variant")} | ENDS
    )
    refbert = {"distill@sst2-refbert-1", "evaluate@sst2-refbert-1"}
    assert stale(clone, {}, settings__refbert__gate=-1.0) == refbert | ENDS


def test_shared_training_settings_make_stale_what_trains(clone: Path, reproduced: str) -> None:
    found = stale(clone, {}, training__patience=7)
    assert {f"distill@sst2-{method}-1" for method in METHODS} <= found
    assert found.isdisjoint({"prepare@sst2", "references@sst2", "fetch@sst2", "corpus"})


def test_a_methods_file_makes_stale_its_students_alone(clone: Path, reproduced: str) -> None:
    assert stale(clone, {"filbert/methods/theseus.py": "# a change\n"}) == OF_THESEUS | ENDS


def test_a_new_method_makes_nothing_else_stale(clone: Path, reproduced: str) -> None:
    toy, students = {"filbert/methods/toy.py": TOY}, {"distill@sst2-toy-1", "evaluate@sst2-toy-1"}
    assert stale(clone, toy) == set()
    assert stale(clone, toy, methods=["toy"], settings__toy={}) == students | ENDS


def test_a_control_is_a_variant_and_makes_nothing_else_stale(clone: Path, reproduced: str) -> None:
    """One line under `variants`, one under `settings`."""
    control = [{"name": "theseus_anti", "method": "theseus", "start": "checkpoint"}]
    found = stale(clone, {}, variants=control, settings__theseus_anti={"schedule": "anti"})
    assert found == {"distill_variant@sst2-variant1-1", "evaluate_variant@sst2-variant1-1"} | ENDS


def test_another_seed_makes_nothing_else_stale(clone: Path, reproduced: str) -> None:
    found = stale(clone, {}, seeds=[2])
    assert all(stage.endswith("-2") for stage in found - ENDS)
    assert f"prune@{CHAIN[:-1]}2" in found


def test_a_new_task_makes_no_other_task_stale(clone: Path, reproduced: str) -> None:
    row = {"kind": "single", "columns": ["text"], "labels": ["billing", "technical"], "metrics": ["accuracy"],
           "source": {"kind": "folder", "name": "tickets"}}  # fmt: skip
    assert stale(clone, {}, task_table__tickets=row) == set()
    found = stale(clone, {}, task_table__tickets=row, tasks=["tickets"])
    assert {"fetch@tickets", "teach@tickets", "distill@tickets-kd-1", "latency@tickets"} <= found
    assert {stage for stage in found if "@tickets" not in stage} == {"report"}


def test_a_new_source_or_another_studys_settings_make_nothing_stale(clone: Path, reproduced: str) -> None:
    assert stale(clone, {}, settings__theseus_anti={"schedule": "anti"}) == set()
    assert stale(clone, {}, pretrain__nokd={}) == set()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["filbert/tracking/mlflow_run.py", "filbert/tracking/mlflow_store.py", "filbert/tracking/run_recorder.py"], {"report"}),
        (["filbert/evaluation/tables.py", "filbert/evaluation/page.html", "filbert/evaluation/statistics.py"], {"report"}),
        (["stages/report.py"], {"report"}),
        (["commands/predict.py", "pipelines/flow.py", "pipelines/repro.py", "docs/a-note.md", "README.md"], set()),
    ],
    ids=["MLflow's view", "tables and page", "report", "commands, flows and documents"],
)  # fmt: skip
def test_what_only_looks_on_retrains_nothing(
    clone: Path, reproduced: str, files: list[str], expected: set[str]
) -> None:
    assert stale(clone, dict.fromkeys(files, "\n")) == expected
