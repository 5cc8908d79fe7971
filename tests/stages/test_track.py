"""What the files say as runs: in an empty store, and once only."""

import shutil
from pathlib import Path

import mlflow
import pytest
from result_files import CONFIG, details, figures, write_rows
from tiny import ROOT

from commands.restore_mlflow import track
from filbert.evaluation import mlflow_export
from filbert.evaluation.results import load_results
from filbert.runtime.files import write_json
from filbert.tracking import run_fields
from filbert.tracking.history import to_text
from filbert.tracking.mlflow_store import MlflowStore
from filbert.tracking.run_recorder import stage_run

SCORES = {"teacher": (0.9,), "finetune": (0.80, 0.81, 0.805), "kd": (0.85, 0.86, 0.855)}


@pytest.fixture
def folder(tmp_path: Path, store: Path) -> Path:
    """Figures of a teacher and two methods; of the students of one their histories too."""
    for student, scores in SCORES.items():
        for seed, score in enumerate(scores, 1):
            stage = {"stage": "teach", "task": "sst2"} if student == "teacher" else {
                "stage": "distill", "task": "sst2", "method": student, "seed": str(seed)}  # fmt: skip
            phase = {"last/batch_size": 8, "last/learning_rate": 1e-3} if student == "kd" else {}
            provenance = {**stage, "rows": "r", "first/batch_size": 4, "first/learning_rate": 1e-4, **phase}
            write_json(tmp_path / f"m/sst2/{student}/{seed}.json", figures(score, 500_000))
            write_json(tmp_path / f"d/sst2/{student}/{seed}.json", details(provenance=provenance))
            write_rows(tmp_path / f"d/sst2/{student}/{seed}.parquet", score, seed)
            if student == "kd":
                write_json(tmp_path / f"s/kd/{seed}/provenance.json", provenance)
                line = {"phase": "last", "step": 10, "time": 1.7e9 + seed, "loss": seed / 2}
                (tmp_path / f"s/kd/{seed}/history.jsonl").write_text(to_text([line]))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def everything() -> dict[str, mlflow.entities.Run]:
    found = mlflow.search_runs(experiment_names=["filbert"], output_format="list")
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def test_files_bring_back_an_empty_store_and_a_second_time_change_nothing(folder: Path) -> None:
    for _ in range(2):
        track(folder / "m", folder / "d", [folder / "s"])
        found, client = everything(), mlflow.MlflowClient()
        assert len(found) == 1 + 3 + 7 + 3  # the parent, trainings, evaluations, aggregates
        assert {run.info.status for run in found.values()} == {"FINISHED"}
        training, measured = found["distill/sst2/kd/2"], found["evaluate/sst2/kd/2"]
        points = client.get_metric_history(training.info.run_id, "last/loss")
        assert [(p.step, p.value, p.timestamp) for p in points] == [(10, 1.0, 1_700_000_002_000)]
        assert len(client.get_metric_history(measured.info.run_id, "score")) == 1
        for run in (training, measured):
            assert run.data.tags["mlflow.parentRunId"] == found["from files"].info.run_id
        assert training.inputs.dataset_inputs[0].dataset.digest == "r"
        (model,) = client.get_run(measured.info.run_id).inputs.model_inputs
        assert model.model_id == training.outputs.model_outputs[0].model_id
        linked = {metric.key: metric.value for metric in client.get_logged_model(model.model_id).metrics}
        assert linked["score"] == pytest.approx(86.0)


def test_an_aggregate_is_the_mean_over_seeds_and_runs_of_all_methods_bear_the_same_names(folder: Path) -> None:
    track(folder / "m", folder / "d", [folder / "s"])
    found = everything()
    kd, finetune = found["sst2/kd"], found["sst2/finetune"]
    figures = {name: kd.data.metrics[name] for name in ("score", "score_std", "of_teacher", "faster_32", "parameters")}
    assert figures == pytest.approx(
        {"score": 85.5, "score_std": 0.5, "of_teacher": 95.0, "faster_32": 3.0, "parameters": 5e5}
    )
    assert kd.data.tags["verdict"].startswith("better than `finetune`")
    assert (kd.data.tags["seeds"], "mlflow.parentRunId" in kd.data.tags) == ("1, 2, 3", False)
    assert all(
        found[f"evaluate/sst2/kd/{seed}"].info.run_id in kd.data.tags["mlflow.note.content"] for seed in (1, 2, 3)
    )
    assert kd.data.params == {
        "task": "sst2", "method": "kd", "batch_size": "8", "learning_rate": "0.001", "layers": "3", "width": "16"}  # fmt: skip
    assert kd.data.params.keys() == finetune.data.params.keys()
    assert kd.data.metrics.keys() == finetune.data.metrics.keys()
    one, other = found["evaluate/sst2/kd/1"], found["evaluate/sst2/teacher/1"]
    assert one.data.params.keys() == other.data.params.keys() == kd.data.params.keys() | {"seed"}
    assert one.data.metrics.keys() == other.data.metrics.keys() >= kd.data.metrics.keys() - {"score_std"}


def test_what_a_stage_logged_is_found_again_and_told_its_share_of_the_teacher(folder: Path) -> None:
    lines = load_results(folder / "m", folder / "d")
    kd = next(line for line in lines if line.student == "kd")
    tags, provenance = {"task": "sst2", "method": "kd", "seed": "1"}, kd.details[0]["provenance"]
    with stage_run(
        "evaluate", params={}, tags=tags, hashes={}, scratch=Path(".scratch"), measures=provenance
    ) as recorder:
        shown = {"score": run_fields.test_score(kd.figures[0]), **run_fields.cost_fields(kd.figures[0])}
        recorder.student({"embedding": 4, "lstm": 8, "hidden": 16}, shown)
    for _ in range(2):
        for record in mlflow_export.aggregates(lines, folder / "m", CONFIG):
            MlflowStore().write(record)
        found = everything()
        assert len(found) == 1 + 1 + 3  # evaluations that are not there are not made
        metrics = found["evaluate/sst2/kd/1"].data.metrics
        assert (metrics["of_teacher"], metrics["score"]) == pytest.approx((94.44444, 85.0))
    assert found["evaluate/sst2/kd/1"].data.params == {**tags, "batch_size": "8", "learning_rate": "0.001", "layers": "1",
                                                       "width": "16"}  # fmt: skip
