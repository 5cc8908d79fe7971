"""Atomic files and folders: complete or as before, and never a place that is not ours to replace."""

import os
from pathlib import Path

import pytest

from filbert import FilbertError
from filbert.runtime import files
from filbert.runtime.secrets import without_password


def test_a_failed_block_leaves_the_former_file_and_folder(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a.json", "old")
    with files.atomic_folder(tmp_path / "out") as making:
        (making / "inner").mkdir()
        (making / "inner" / "x").write_text("old")
    with pytest.raises(NotADirectoryError), files.atomic_file(tmp_path / "a.json") as making:
        (making.write_text("new"), Path(making, "x").write_text("new"))
    with pytest.raises(FileNotFoundError), files.atomic_folder(tmp_path / "out") as making:
        ((making / "y").write_text("new"), (making / "none" / "y").write_text("new"))
    assert (tmp_path / "a.json").read_text() == (tmp_path / "out" / "inner" / "x").read_text() == "old"
    with files.atomic_folder(tmp_path / "out") as making:
        (making / "y").write_text("new")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["HASHES.json", "y"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "out"]  # nothing temporary


def test_a_folder_that_cannot_be_put_in_its_place_leaves_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with files.atomic_folder(tmp_path / "out") as making:
        (making / "a").write_text("former")
    rename, calls = Path.rename, iter((False, True, False))

    def failing(self: Path, target: Path) -> Path:
        if next(calls):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"), files.atomic_folder(tmp_path / "out") as making:
        (making / "a").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "former"


def test_contents_are_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("sync"), sync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("rename"), replace(*paths)))
    files.write_text(tmp_path / "a.json", "text")
    assert done == ["sync", "rename", "sync"]  # the file, then its folder


def test_what_is_not_ours_to_replace_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "project"
    (here / "data").mkdir(parents=True)
    monkeypatch.chdir(here)
    (here / "file").write_text("text")
    (here / "link").symlink_to(here / "data")
    for folder, said in (
        (Path(), "it holds the working directory"),
        (Path(".."), "it holds the working directory"),
        (here, "it holds the working directory"),
        (Path("file"), "found a file or a link"),
        (Path("link"), "found a file or a link"),
    ):
        with pytest.raises(FilbertError, match=said), files.atomic_folder(folder):
            pass
    with pytest.raises(FilbertError, match="expected a file to write to"):
        files.write_text(Path("data"), "text")
    with pytest.raises(FilbertError, match="expected a file to write to"):
        files.write_text(Path(os.devnull), "text")
    assert sorted(path.name for path in here.iterdir()) == ["data", "file", "link"]


def test_the_hash_of_the_code_covers_all_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(files, "sha256", lambda *paths: hashed.extend(paths) or "")
    files.code_hash()
    assert {"runtime", "training", "methods", "models"} <= {path.parent.name for path in hashed}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("no https://user:secret@host/simple x", "no https://host/simple x"),
        ("data @ git+ssh://token@host/a.git", "data @ git+ssh://host/a.git"),
        ("mail a@b.c at https://host/a", "mail a@b.c at https://host/a"),
        ("postgresql://user:sec@ret@host/db", "postgresql://host/db"),
        ("https://host/a@v1?access_token=abc&b=1", "https://host/a@v1?access_token=…&b=1"),
    ],
)
def test_passwords_are_removed(text: str, clean: str) -> None:
    assert without_password(text) == clean
