"""A release in MLflow's registry: it answers as the release does, and the champion is the best one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import mlflow
import pandas as pd
import pytest
from export_files import export_folder, write_params
from tiny import sentences

import filbert
from filbert.export.release import write_release
from filbert.tracking.registry import register_release

TEXTS = [text for text, _ in sentences(3)]


@pytest.fixture
def release(store: Path, tmp_path: Path, teacher: Path) -> Path:
    exported = export_folder(teacher, tmp_path / "exported")
    write_params(Path("params.yaml"))
    write_release(exported, "model.onnx", tmp_path / "release", 1.0)
    return tmp_path / "release"


def test_the_champion_is_the_best_version_and_answers(release: Path) -> None:
    found = [
        register_release(release, "sst2", {"validation": score, "bytes": 1.0}, {"student": "kd"})
        for score in (80.0, 79.0, 81.0)
    ]
    assert [(each.version, each.is_champion) for each in found] == [("1", True), ("2", False), ("3", True)]
    champion = mlflow.MlflowClient().get_model_version_by_alias("sst2", "champion")
    assert (str(champion.version), champion.tags["validation"], champion.tags["student"]) == ("3", "81.0", "kd")
    answers = mlflow.pyfunc.load_model("models:/sst2@champion").predict(pd.DataFrame({"text": TEXTS}))
    wanted = filbert.load(release).predict(TEXTS)
    assert [json.loads(answer)["label"] for answer in answers] == [answer["label"] for answer in wanted]


@pytest.mark.slow
def test_mlflow_models_serve_answers_with_this_environment(store: Path, release: Path) -> None:
    """The command of docs/export.md, with nothing to download."""
    register_release(release, "sst2", {"validation": 80.0}, {"student": "kd"})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["models", "serve", "--model-uri", "models:/sst2@champion", "--env-manager", "local", "--port", str(port)]
    env = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    command = [sys.executable, "-m", "mlflow", *words]
    with (
        subprocess.Popen(command, env=env, start_new_session=True, stderr=subprocess.DEVNULL) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        try:
            answer = _asked(client, {"dataframe_records": [{"text": text} for text in TEXTS]})
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    wanted = filbert.load(release).predict(TEXTS)
    assert [json.loads(each)["label"] for each in answer["predictions"]] == [each["label"] for each in wanted]


def _asked(client: httpx.Client, body: dict) -> dict:
    """The answer of a server that is starting."""
    end = time.monotonic() + 120
    while True:
        try:
            return client.post("/invocations", json=body, timeout=30).raise_for_status().json()
        except httpx.ConnectError:
            assert time.monotonic() < end, "it does not start"
            time.sleep(0.2)
