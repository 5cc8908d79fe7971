"""The history is the record, MLflow the view; losing the view loses nothing."""

import json
from pathlib import Path

import mlflow
import pytest

from filbert.tracking import curve, flat, read_history, stage_run, steps


def runs() -> dict[str, mlflow.entities.Run]:
    return {run.info.run_name: run for run in mlflow.search_runs(experiment_names=["filbert"], output_format="list")}


def test_stages_are_nested_runs_with_params_tags_and_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
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
    assert child.data.params == {"fit/epochs": "2"}
    assert child.data.metrics == {"distill/loss": pytest.approx(1 / 3), "test/score": 0.5, "parameters": 7}
    points = mlflow.MlflowClient().get_metric_history(child.info.run_id, "distill/loss")
    assert [(p.step, p.value) for p in points] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_a_stage_that_was_killed_goes_on_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for fails in (True, False):
        try:
            with stage_run(
                "teach", params={"a": 1}, tags={"task": "t"}, hashes={}, scratch=Path(".scratch/x")
            ) as recorder:
                recorder.log("teach", 1, {"loss": 1.0})
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert runs()["teach/t"].info.status == "FAILED"
    assert len([name for name in runs() if name == "teach/t"]) == 1
    assert runs()["teach/t"].info.status == "FINISHED"


def test_a_restart_with_other_settings_is_another_run_and_a_failed_stage_fails_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
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
        ("1", "FAILED"),
        ("2", "FINISHED"),
    ]
    assert [run.info.status for run in found if run.data.tags["stage"] == "pipeline"] == ["FAILED"]


def test_one_failure_to_write_loses_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write, calls = mlflow.MlflowClient.log_batch, []

    def locked_once(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 1:
            raise OSError("database is locked")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", locked_once)
    monkeypatch.setattr("filbert.view.FLUSH_SECONDS", -1.0)
    with (
        pytest.warns(UserWarning, match="not reached this time"),
        stage_run("teach", params={}, tags={}, hashes={}, scratch=Path(".scratch/x")) as recorder,
    ):
        for step in (1, 2, 3):
            recorder.log("teach", step, {"loss": float(step)})
    run = runs()["teach"]
    assert [p.step for p in mlflow.MlflowClient().get_metric_history(run.info.run_id, "teach/loss")] == [1, 2, 3]


def test_losing_mlflow_loses_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.warns(UserWarning, match="MLflow is lost for this stage, the files stay the record"),
        stage_run("teach", params={}, tags={}, hashes={}, scratch=tmp_path / "scratch") as recorder,
    ):
        recorder.log("teach", 1, {"loss": 0.5})
        recorder.metrics({"score": 1.0})
    assert [(line["step"], line["loss"]) for line in read_history(recorder.history)] == [(1, 0.5)]


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
    assert steps(recorder.history) == 15
    assert curve(recorder.history)[-1] == {"phase": "two", "step": 5, "score": 0.5}


def test_flat() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a/b/c": 1, "d": [2]}
    assert json.dumps(flat({})) == "{}"
