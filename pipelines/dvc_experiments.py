"""Runs with other settings, each in a git worktree of its own with DVC's cache shared: the user's files stay as they are."""

import re
import shutil
import subprocess
from pathlib import Path

from dvc.repo import Repo

from filbert.runtime.files import SCRATCH
from pipelines.dvc_graph import StageError
from pipelines.run_stage import dvc_command


def begin(name: str, overrides: list[str]) -> Path:
    """A worktree of the last commit with `overrides` in its params.yaml; one that a failed run of that name and commit left is
    used again.

    Raises:
        StageError: the experiment exists already or cannot have that name.
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        raise StageError(f"an experiment's name is of letters, digits, - and _, not {name!r}")
    root = Path.cwd()
    commit, folder = git(root, "rev-parse", "HEAD"), root / SCRATCH / "experiments" / name
    if git(root, "for-each-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"):
        raise StageError(f"there is an experiment {name} of this commit: give another name or `dvc exp remove {name}`")
    open_worktree(root, folder)
    if overrides:
        from dvc.utils.hydra import apply_overrides  # imports Hydra, 1 s

        apply_overrides(str(folder / "params.yaml"), overrides)
    return folder


def save(name: str, folder: Path) -> None:
    """Make the experiment `name` of what is in `folder`, for `dvc exp show` in every working tree, and remove it."""
    git(folder, "add", "--all")  # figures of new students, too
    dvc_command(folder, "exp", "save", "--name", name)
    git(folder, "worktree", "remove", "--force", str(folder))


def open_worktree(root: Path, folder: Path) -> None:
    """A worktree of the last commit at `folder`, its params.yaml as committed; made anew unless `folder` is one of that commit."""
    if worktree_commit(folder) == git(root, "rev-parse", "HEAD"):
        git(folder, "checkout", "--quiet", "--", "params.yaml")
        return  # its outs are its own: checking out would remove what a cache has grown by
    shutil.rmtree(folder, ignore_errors=True)
    git(root, "worktree", "add", "--quiet", "--force", "--detach", str(folder))
    if (local := root / ".dvc" / "config.local").exists():
        shutil.copy(local, folder / ".dvc" / "config.local")
    with Repo(str(folder)).config.edit("local") as local_config:
        local_config["cache"]["dir"] = Repo(str(root)).cache.local_cache_dir
    Repo(str(folder)).checkout(force=True, allow_missing=True)


def worktree_commit(folder: Path) -> str:
    """The commit of the worktree at `folder`; empty where there is none."""
    return git(folder, "rev-parse", "HEAD") if (folder / ".git").exists() else ""


def git(folder: Path, *words: str) -> str:
    """What one git command prints. Raises StageError."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise StageError(f"`git {' '.join(words)}` failed:\n{done.stderr.strip()}")
    return done.stdout.strip()
