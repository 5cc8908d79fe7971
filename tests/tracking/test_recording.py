"""The history is the record, MLflow the view; losing the view loses nothing."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import mlflow
import pytest

from filbert.evaluation import mlflow_export
from filbert.runtime.files import write_json
from filbert.tracking.history import count_steps, read_history, validation_curve
from filbert.tracking.mlflow_store import STORE, MlflowStore, RunRecord
from filbert.tracking.run_recorder import flatten, stage_run


def runs() -> dict[str, mlflow.entities.Run]:
    return {run.info.run_name: run for run in mlflow.search_runs(experiment_names=["filbert"], output_format="list")}


def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every point be written when it is said, whatever that takes."""
    monkeypatch.setattr("filbert.tracking.mlflow_run.FLUSH_SECONDS", -1.0)
    monkeypatch.setattr("filbert.tracking.mlflow_run.MAX_SHARE", float("inf"))


def points(run: str, name: str) -> list[tuple[int, float, int]]:
    history = mlflow.MlflowClient().get_metric_history(run, name)
    return sorted((p.step, p.value, p.timestamp) for p in history)


def said(file: Path, name: str) -> list[tuple[int, float, int]]:
    return [(line["step"], line[name], round(1000 * line["time"])) for line in read_history(file)]


def test_stages_are_nested_runs_with_params_tags_and_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    monkeypatch.setenv("FILBERT_PIPELINE", "one")
    monkeypatch.setenv("DVC_STAGE", "distill@t-kd-1")
    for seed in ("1", "2"):
        tags = {"task": "t", "method": "kd", "seed": seed}
        with stage_run(
            "distill",
            params={"fit": {"epochs": 2}},
            tags=tags,
            hashes={"rows": "abc"},
            scratch=Path(f".scratch/{seed}"),
        ) as recorder:
            for step in (1, 2, 3):
                recorder.log("distill", step, {"loss": 1.0 / step})
            recorder.metrics({"test": {"score": 0.5}, "parameters": 7})
    found = runs()
    assert len(found) == 3
    parent = next(run for run in found.values() if run.data.tags["stage"] == "pipeline")
    child = found["distill/t/kd/1"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {k: child.data.tags[k] for k in ("task", "method", "seed", "rows", "DVC_STAGE")} == {
        "task": "t", "method": "kd", "seed": "1", "rows": "abc", "DVC_STAGE": "distill@t-kd-1"}  # fmt: skip
    assert child.data.params == {"fit/epochs": "2", "task": "t", "method": "kd", "seed": "1"}
    assert child.data.metrics == {"distill/loss": pytest.approx(1 / 3), "test/score": 0.5, "parameters": 7}
    points = mlflow.MlflowClient().get_metric_history(child.info.run_id, "distill/loss")
    assert [(p.step, p.value) for p in points] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_pipeline_runs_that_two_machines_make_at_once_are_one(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    one, other = MlflowStore(), MlflowStore()
    create, first = one.client.create_run, []

    def late(*words, **named):  # type: ignore[no-untyped-def]
        first.append(other.pipeline_run("nightly", "of the other"))
        time.sleep(0.01)
        return create(*words, **named)

    monkeypatch.setattr(one.client, "create_run", late)
    assert [one.pipeline_run("nightly", "of the one")] == first
    assert [run.info.run_id for run in runs().values()] == first


def test_a_stage_that_was_killed_goes_on_in_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    for fails in (True, False):
        try:
            with stage_run(
                "teach", params={"a": 1}, tags={"task": "t"}, hashes={}, scratch=Path(".scratch/x")
            ) as recorder:
                recorder.log("teach", 1, {"loss": 1.0})
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert runs()["teach/t"].info.status == "KILLED"
    assert len([name for name in runs() if name == "teach/t"]) == 1
    assert runs()["teach/t"].info.status == "FINISHED"


def test_a_restart_with_other_settings_is_another_run_and_a_failed_stage_fails_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    monkeypatch.setenv("FILBERT_PIPELINE", "one")
    with (
        pytest.raises(KeyboardInterrupt),
        stage_run("teach", params={"a": 1}, tags={}, hashes={}, scratch=Path(".scratch/x")),
    ):
        raise KeyboardInterrupt
    with stage_run("teach", params={"a": 2}, tags={}, hashes={}, scratch=Path(".scratch/x")):
        pass
    found = mlflow.search_runs(experiment_names=["filbert"], output_format="list")
    assert sorted((run.data.params["a"], run.info.status) for run in found if run.data.params) == [
        ("1", "KILLED"),
        ("2", "FINISHED"),
    ]
    assert [run.info.status for run in found if run.data.tags["stage"] == "pipeline"] == ["KILLED"]


def test_one_failure_to_write_loses_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    write, calls = mlflow.MlflowClient.log_batch, []

    def locked_once(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 1:
            raise OSError("database is locked")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", locked_once)
    at_once(monkeypatch)
    with (
        pytest.warns(UserWarning, match="MLflow cannot be reached, the files stay the record"),
        stage_run("teach", params={}, tags={}, hashes={}, scratch=Path(".scratch/x")) as recorder,
    ):
        for step in (1, 2, 3):
            recorder.log("teach", step, {"loss": float(step)})
    run = runs()["teach"]
    assert [p.step for p in mlflow.MlflowClient().get_metric_history(run.info.run_id, "teach/loss")] == [1, 2, 3]


def test_a_store_that_comes_late_gets_every_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    at_once(monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.warns(UserWarning, match="MLflow cannot be reached"),
        stage_run("teach", params={"a": 1}, tags={}, hashes={}, scratch=Path(".scratch/x")) as recorder,
    ):
        recorder.log("teach", 1, {"loss": 1.0})
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        recorder.log("teach", 2, {"loss": 0.5})
    run = runs()["teach"]
    assert points(run.info.run_id, "teach/loss") == said(recorder.history, "loss")
    assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})


def test_a_server_that_never_answers_holds_a_stage_up_for_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("filbert.tracking.mlflow_run.FLUSH_SECONDS", 0.0)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and says nothing
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        with (
            pytest.warns(UserWarning, match="MLflow cannot be reached"),
            stage_run("teach", params={}, tags={}, hashes={}, scratch=tmp_path / "scratch") as recorder,
        ):
            for step in range(100):
                recorder.log("teach", step, {"loss": 0.5})
    assert len(read_history(recorder.history)) == 100
    assert time.monotonic() - began < 6  # asked when the stage began and when it ended, and seldom between


@pytest.mark.slow
def test_a_server_killed_while_a_stage_runs_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    at_once(monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri, port = f"sqlite:///{store}", free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with served(uri, port) as server:
        tags = {"task": "sst2", "method": "kd", "seed": "1"}
        with (
            pytest.warns(UserWarning, match="MLflow lacks a part of this run"),
            stage_run(
                "distill", params={"a": 1}, tags=tags, hashes={"rows": "r"}, scratch=Path(".scratch/x")
            ) as recorder,
        ):
            recorder.log("train", 1, {"loss": 1.0})
            kill(server)
            recorder.log("train", 2, {"loss": 0.5})
    assert [line["step"] for line in read_history(recorder.history)] == [1, 2]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    assert (runs()["distill/sst2/kd/1"].info.status, len(runs())) == ("RUNNING", 2)
    student = tmp_path / "students" / "1"
    student.mkdir(parents=True)
    write_json(student / "provenance.json", recorder.provenance)
    (student / "history.jsonl").write_text(recorder.history.read_text())
    (record,) = mlflow_export.trainings([tmp_path / "students"], [])
    assert not MlflowStore().write(record)
    run = runs()["distill/sst2/kd/1"]
    assert (run.info.status, len(runs())) == ("FINISHED", 2)
    assert points(run.info.run_id, "train/loss") == said(student / "history.jsonl", "loss")


@pytest.mark.slow
def test_a_server_that_is_restarted_lacks_nothing(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    """What is logged while it is down is kept and written when it is back, with the run's end, of which nobody is warned."""
    at_once(monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # a machine may be busy
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri, port = f"sqlite:///{store}", free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with (
        pytest.warns(UserWarning, match="MLflow") as warned,
        ExitStack() as servers,
        stage_run("teach", params={"a": 1}, tags={}, hashes={}, scratch=Path(".scratch/x")) as recorder,
    ):
        recorder.log("teach", 1, {"loss": 1.0})  # nothing listens there yet
        server = servers.enter_context(served(uri, port))
        recorder.log("teach", 2, {"loss": 0.5})
        kill(server)
        recorder.log("teach", 3, {"loss": 0.25})
        servers.enter_context(served(uri, port))
    told = [str(warning.message).split(",")[0] for warning in warned]
    assert told == 2 * ["MLflow cannot be reached"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    run = runs()["teach"]
    assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})
    assert points(run.info.run_id, "teach/loss") == said(recorder.history, "loss")


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


@contextmanager
def served(uri: str, port: str) -> Iterator[subprocess.Popen]:
    """A store, served until the block ends or the server is killed."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--port", port, "--workers", "1"]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            yield server
        finally:
            kill(server)


def kill(server: subprocess.Popen) -> None:
    """It and its workers."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(url: str) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.25)
    raise TimeoutError(url)


def test_losing_mlflow_loses_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.warns(UserWarning, match="teach: MLflow lacks a part of this run; `make track` restores it"),
        stage_run("teach", params={}, tags={}, hashes={}, scratch=tmp_path / "scratch") as recorder,
    ):
        recorder.log("teach", 1, {"loss": 0.5})
        recorder.metrics({"score": 1.0})
    assert [(line["step"], line["loss"]) for line in read_history(recorder.history)] == [(1, 0.5)]


def test_a_figure_that_is_measured_again_is_a_later_point(tmp_path: Path, store: Path) -> None:
    key = "trained"
    MlflowStore().write(RunRecord("kd", key, {}, {}, {}, 1000, 1000, folder="folder"))
    for milliseconds in (5.0, 6.0, 7.0):
        figures = {"milliseconds": milliseconds}
        MlflowStore().write(RunRecord("evaluate/kd", "measured", {}, {}, figures, 1000, 1000, measures=(key,)))
    run = runs()["evaluate/kd"]
    assert run.data.metrics["milliseconds"] == 7.0
    assert len(points(run.info.run_id, "milliseconds")) == 3


def test_histories_are_rewound_summed_and_survive_a_cut_line(tmp_path: Path, recorder) -> None:  # type: ignore[no-untyped-def]
    for phase, step in (("one", 5), ("one", 10), ("two", 5), ("two", 7)):
        recorder.log(phase, step, {"validation_score": step / 10})
    recorder.rewind("two", 5)
    assert [(line["phase"], line["step"]) for line in read_history(recorder.history)] == [
        ("one", 5),
        ("one", 10),
        ("two", 5),
    ]
    with recorder.history.open("a") as stream:
        stream.write('{"phase": "tw')
    assert count_steps(recorder.history) == 15
    assert validation_curve(recorder.history)[-1] == {"phase": "two", "step": 5, "score": 0.5}


def test_a_history_is_rewritten_under_another_name(recorder, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """A kill while it is rewound leaves the former history."""
    for step in (1, 2, 3):
        recorder.log("train", step, {"loss": 0.5})

    def killed(*paths: Path) -> None:
        raise KeyboardInterrupt

    replace = os.replace
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        recorder.rewind("train", 1)
    monkeypatch.setattr(os, "replace", replace)
    assert [line["step"] for line in read_history(recorder.history)] == [1, 2, 3]
    recorder.rewind("train", 1)
    assert [line["step"] for line in read_history(recorder.history)] == [1]


def test_flat() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a/b/c": 1, "d": [2]}
    assert json.dumps(flatten({})) == "{}"


@pytest.mark.parametrize("content", [b"no database at all", None], ids=["damaged", "a folder"])
def test_a_store_that_cannot_be_opened_holds_a_stage_up_for_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """MLflow itself tries for 205."""
    monkeypatch.chdir(tmp_path)
    Path(STORE).mkdir() if content is None else Path(STORE).write_bytes(content)
    started = time.monotonic()
    with (
        pytest.warns(UserWarning, match="MLflow cannot be reached, the files stay the record"),
        stage_run("teach", params={}, tags={}, hashes={}, scratch=Path(".scratch/x")),
    ):
        pass
    assert time.monotonic() - started < 15


def another_schema(store: Path) -> None:
    """A store that a later MLflow has made."""
    with closing(sqlite3.connect(store)) as found:
        found.execute("CREATE TABLE alembic_version (version_num TEXT)")
        found.execute("INSERT INTO alembic_version VALUES ('of 2031')")
        found.execute("CREATE TABLE experiments (name TEXT)")
        found.commit()


@pytest.mark.parametrize(
    ("uri", "prepare"),
    [
        (None, lambda store: store.write_bytes(b"no database at all")),
        (None, lambda store: store.mkdir()),
        (None, another_schema),
        ("http://127.0.0.1:9", None),
        ("http://me:secret@nowhere.invalid:5000", None),
        ("htp://x", None),
    ],
    ids=["damaged", "a folder", "another schema", "down", "no such host", "no address"],
)
def test_a_store_that_cannot_be_used_is_told_in_one_line_and_costs_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, uri: str | None, prepare: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    else:
        prepare(tmp_path / STORE)
    began = time.monotonic()
    with (
        warnings.catch_warnings(record=True) as said,
        stage_run("teach", params={}, tags={}, hashes={}, scratch=Path(".scratch/x")) as recorder,
    ):
        warnings.simplefilter("always", UserWarning)
        recorder.log("teach", 1, {"loss": 0.5})
        recorder.metrics({"score": 1.0})
    told = [str(each.message) for each in said if each.category is UserWarning]
    assert time.monotonic() - began < 15
    assert ["MLflow lacks a part" in line for line in told][-1:] == [True]
    assert not any("\n" in line or "secret" in line or len(line) > 700 for line in told)
    assert "Traceback" not in capfd.readouterr().err


def test_a_store_that_hangs_is_not_waited_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    """A server that takes connections and says nothing, and a database that another process holds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        with (
            pytest.warns(UserWarning, match="MLflow"),
            stage_run("teach", params={}, tags={}, hashes={}, scratch=Path(".scratch/x")),
        ):
            pass
    assert time.monotonic() - began < 3.5
