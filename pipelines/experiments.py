"""A run with other parameters as a DVC experiment: in a working tree of its own, the user's is left as it is."""

import re
import shutil
import subprocess
from pathlib import Path

from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from filbert.runtime.files import SCRATCH
from pipelines.graph import StageError
from pipelines.stage import dvc


def begin(name: str, overrides: list[str]) -> Path:
    """A git worktree of the last commit with DVC's cache shared and `overrides` in its params.yaml.

    One that a failed run of that name and commit left is gone on with. Raises StageError if the experiment exists already or
    cannot have that name.
    """
    if not re.fullmatch(r"\w[\w-]*", name):
        raise StageError(f"an experiment's name is of letters, digits, - and _, not {name!r}")
    root = Path.cwd()
    commit, folder = git(root, "rev-parse", "HEAD"), root / SCRATCH / "experiments" / name
    if git(root, "for-each-ref", f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"):
        raise StageError(f"there is an experiment {name} of this commit: give another name or `dvc exp remove {name}`")
    left = (folder / ".git").exists() and git(folder, "rev-parse", "HEAD") == commit
    if left:
        git(folder, "checkout", "--quiet", "--", "params.yaml")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        git(root, "worktree", "add", "--quiet", "--force", "--detach", str(folder))
    if (local := root / ".dvc" / "config.local").exists():
        shutil.copy(local, folder / ".dvc" / "config.local")
    dvc(folder, "config", "--quiet", "--local", "cache.dir", Repo(str(root)).cache.local_cache_dir)
    if not left:  # what it has made is its own: checking out would take what a cache has grown by
        dvc(folder, "checkout", "--quiet", "--force", "--allow-missing")
    if overrides:
        apply_overrides(str(folder / "params.yaml"), overrides)
    return folder


def save(name: str, folder: Path) -> None:
    """Make the experiment `name` of what is in `folder`, for `dvc exp show` in every working tree, and remove it."""
    git(folder, "add", "--all")  # figures of new students, too
    dvc(folder, "exp", "save", "--name", name)
    git(folder, "worktree", "remove", "--force", str(folder))


def git(folder: Path, *words: str) -> str:
    """What one git command says. Raises StageError."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise StageError(f"`git {' '.join(words)}` failed:\n{done.stderr.strip()}")
    return done.stdout.strip()
