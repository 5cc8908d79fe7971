"""The export stage from folder to folder: what it writes, what is chosen, and that its folder is asked as any other."""

from pathlib import Path

import pytest
from export_files import write_params

import filbert
from filbert import FilbertError
from filbert.data import arrow, splits
from filbert.export import folder as folders
from filbert.export.release import write_release
from filbert.runtime.files import read_json, write_json
from stages.export import export


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: splits.Prepared, teacher: Path) -> Path:
    """A working folder with params.yaml, prepared rows and a trained model."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path / "params.yaml")
    for name, table in prepared.tables.items():
        (tmp_path / "prepared").mkdir(exist_ok=True)
        arrow.write_table(table, tmp_path / "prepared" / f"{name}.arrow")
    (tmp_path / "model").mkdir()
    for file in teacher.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    write_json(tmp_path / "model" / "provenance.json", {"stage": "teach", "task": "sst2", "tokenizer/max_length": 128})
    return tmp_path


def test_a_teacher_is_exported_and_asked(world: Path) -> None:
    export("sst2", "teacher", 0, Path("prepared"), Path("model"), Path("out/teacher/0"), Path("figures.json"))
    out = world / "out" / "teacher" / "0"
    assert {"model.onnx", "tokenizer.json", "config.json", "export.json", "README.md"} <= {
        f.name for f in out.iterdir()
    }
    assert not [f for f in out.parent.iterdir() if f.name != "0"]
    record, about = read_json(out / "export.json"), read_json(out / "config.json")
    assert record == read_json(world / "figures.json")
    assert record["logits"]["mixed"] < 1e-4
    assert record["published"] == about["model"]
    file = record["files"][about["model"]]
    assert file["test"]["interval"][0] <= file["test"]["score"]
    assert (out / about["model"]).exists()
    assert file["bytes"] == file["model_bytes"] + (out / "tokenizer.json").stat().st_size
    said = (out / "README.md").read_text()
    for part in ("# teacher on sst2", "one of negative, positive", "## Limits", "per_channel", "glue", "validation"):
        assert part in said
    assert len(filbert.load(out).predict(["the film was great", "dull"])) == 2
    write_release(out, folders.FLOAT32, world / "release", 1.0)
    said = (world / "release" / "README.md").read_text()
    assert f"| test | {100 * record['files'][folders.FLOAT32]['test']['score']:.1f} |" in said
    assert "int8 answers depend" not in said
    fitted = record["calibration"][folders.FLOAT32]["temperature"]
    assert read_json(world / "release" / "config.json")["temperature"] == fitted


def test_a_wrong_tolerance_leaves_nothing_behind(world: Path) -> None:
    write_params(world / "params.yaml", tolerance=1e-12)
    with pytest.raises(FilbertError, match=r"expected logits within 1e-12 of the model in model"):
        export("sst2", "teacher", 0, Path("prepared"), Path("model"), Path("out/teacher/0"), Path("figures.json"))
    assert not list((world / "out" / "teacher").iterdir())
