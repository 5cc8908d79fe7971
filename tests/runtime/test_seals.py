"""What a stage reads is what the former stage wrote, and what it replaces is its own."""

from pathlib import Path

import pytest

from filbert import FilbertError
from filbert.runtime import files
from filbert.runtime.seals import SEAL, SealError, check_seals


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A student's folder among others, as a stage writes it."""
    with files.atomic_folder(tmp_path / "students" / "kd" / "1") as making:
        (making / "references").mkdir()
        (making / "model.safetensors").write_bytes(bytes(100))
        (making / "references" / "store.json").write_text("{}")
    return tmp_path / "students" / "kd" / "1"


def test_a_folder_is_sealed_when_it_is_complete(folder: Path) -> None:
    assert set(files.read_json(folder / SEAL)) == {"model.safetensors", "references/store.json"}
    check_seals(folder.parent.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "references/store.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    content = bytearray((folder / name).read_bytes())
    if damage == "flip":
        content[1] ^= 1
    (folder / name).write_bytes(content if damage == "flip" else content[:-1])
    if damage == "delete":
        (folder / name).unlink()
    said = "missing; its stage wrote it" if damage == "delete" else "expected what its stage wrote"
    with pytest.raises(SealError, match=rf"{folder / name}: {said}.* `dvc repro`, or remove .*{SEAL}"):
        check_seals(folder.parent.parent)


@pytest.mark.parametrize("text", ["{", "[1]", '{"model.safetensors": 1}'])
def test_a_seal_that_is_none_is_named(folder: Path, text: str) -> None:
    (folder / SEAL).write_text(text)
    with pytest.raises(SealError, match=f"{SEAL}: damaged"):
        check_seals(folder)


def test_only_what_a_stage_wrote_is_replaced(folder: Path, tmp_path: Path) -> None:
    with files.atomic_folder(folder) as making:
        (making / "new").touch()
    assert not (folder / "model.safetensors").exists()
    (tmp_path / "thesis").mkdir()
    with files.atomic_folder(tmp_path / "thesis") as making:  # it was empty
        (making / "new").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(FilbertError, match=r"photos: .* files that no stage wrote, such as cat.jpg"):
        files.check_folder(tmp_path / "photos")
    with pytest.raises(FilbertError, match=r"cat.jpg/out: cannot be written: "):
        files.check_folder(tmp_path / "photos" / "cat.jpg" / "out")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()].count("cat.jpg") == 1


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    ours, others = (
        (".filbert-x8_a-out", ".filbert-old_x8_a-out", ".filbert-71-out"),
        (".filbert-x8-a-out", ".out", "out"),
    )
    for name in (*ours[:2], *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ours[2]).touch()
    files.remove_unfinished(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == set(others)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"test": {"score": float("nan")}}, "test.score = nan"),
        ({"curve": [1.0, float("inf")]}, "curve.1 = inf"),
        (float("-inf"), " = -inf"),
    ],
)
def test_a_figure_that_is_no_number_is_named(tmp_path: Path, value: object, said: str) -> None:
    with pytest.raises(FilbertError, match=f"figures.json: expected finite numbers, got {said}"):
        files.write_json(tmp_path / "figures.json", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "\0", "{'a': 1}"])
def test_a_damaged_json_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FilbertError, match=r"a.json: damaged: expected JSON, got .*`dvc repro`"):
        files.read_json(tmp_path / "a.json")
