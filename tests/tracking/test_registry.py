"""A release in MLflow's registry: it answers as the release does, and the champion is the best one."""

import json
from pathlib import Path

import mlflow
import pandas as pd
from export_files import export_folder
from tiny import sentences

import filbert
from filbert.export.release import write_release
from filbert.tracking.registry import register_release

TEXTS = [text for text, _ in sentences(3)]


def test_the_champion_is_the_best_version_and_answers(store: Path, tmp_path: Path, teacher: Path) -> None:
    exported = export_folder(teacher, tmp_path / "exported")
    (exported / "README.md").write_text("# kd\n\n## Use\n\nfilbert\n\n## Limits\n\n- none\n")
    write_release(exported, "model.onnx", tmp_path / "release", 1.0)
    found = [
        register_release(tmp_path / "release", "sst2", {"validation": score, "bytes": 1.0}, {"student": "kd"})
        for score in (80.0, 79.0, 81.0)
    ]
    assert [(each.version, each.is_champion) for each in found] == [("1", True), ("2", False), ("3", True)]
    champion = mlflow.MlflowClient().get_model_version_by_alias("sst2", "champion")
    assert (str(champion.version), champion.tags["validation"], champion.tags["student"]) == ("3", "81.0", "kd")
    answers = mlflow.pyfunc.load_model("models:/sst2@champion").predict(pd.DataFrame({"text": TEXTS}))
    wanted = filbert.load(tmp_path / "release").predict(TEXTS)
    assert [json.loads(answer)["label"] for answer in answers] == [answer["label"] for answer in wanted]
