"""What reaches for the network is seen, and nothing does."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from reliability import network
from tiny import ROOT
from tiny_graph import MADE, REPRO, environment, make_clone, ran

CONTROL = """
import socket, sys, urllib.request
sys.path.insert(0, "tests")
from reliability import network
log = network.watch()
for call in (lambda: urllib.request.urlopen("http://counter.example/ping"),
             lambda: socket.create_connection(("192.0.2.1", 9), timeout=0.01),
             lambda: socket.create_connection(("tracker.example", 9), timeout=0.01)):
    try:
        call()
    except OSError:
        pass
print(network.attempts(log))
"""


def test_what_reaches_for_the_network_is_seen() -> None:
    """By a proxy, by an address, by a name."""
    done = subprocess.run([sys.executable, "-c", CONTROL], cwd=ROOT, capture_output=True, text=True, check=True)
    for said in ("GET http://counter.example/ping", "connected to 192.0.2.1", "looked up tracker.example"):
        assert said in done.stdout


CHILD = """
import sys, urllib.request
try:
    urllib.request.urlopen("http://child.example/ping")
except OSError:
    pass
import socket
try:
    socket.create_connection(("elsewhere.example", 9), timeout=0.01)
except OSError:
    pass
"""


def test_what_a_child_reaches_for_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    env = network.watched_environment(environment(), log)
    subprocess.run([sys.executable, "-c", CHILD], env=env, check=True)
    assert [line for line in network.attempts(log) if "127.0.0.1" not in line] == [
        "GET http://child.example/ping HTTP/1.1", "looked up elsewhere.example"
    ]  # fmt: skip


SESSION = """
import sys, time
sys.path.insert(0, "tests")
from reliability import network
log = network.watch()
import filbert
import numpy as np, onnxruntime
from onnx import TensorProto, helper
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": np.zeros(1, np.float32)})
time.sleep(12)  # a report came after some seconds
print(network.attempts(log))
"""


@pytest.mark.slow
def test_onnxruntime_reports_no_session() -> None:
    done = subprocess.run([sys.executable, "-c", SESSION], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


STUDENT, EXPORT = "data/students/sst2/kd/1", "data/exported/sst2/xtremedistil/1"


@pytest.mark.slow
def test_the_pipeline_predict_and_serve_reach_for_nothing(tmp_path: Path, checkpoint: Path) -> None:
    """A whole tiny `make repro`, the same as a flow, `predict`, `pick`, `release` and `serve`, with no setting that turns
    reports off."""
    clone, log = tmp_path / "clone", tmp_path / "log"
    clone.mkdir()
    log.touch()
    make_clone(clone, checkpoint)
    shutil.copy(ROOT / ".dvc" / "config", clone / ".dvc" / "config")
    env = network.watched_environment(environment(), log)

    def shell(*words: str, **more: str) -> str:
        done = subprocess.run(words, cwd=clone, env=env | more, capture_output=True, text=True)
        assert not done.returncode, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert ran(shell(*REPRO)) == set(MADE)
    local = {"NO_PROXY": "127.0.0.1", "PREFECT_HOME": str(tmp_path / "prefect")}  # Prefect's own server is here
    assert "Completed" in shell("python", "-m", "pipelines.flow", **local)
    assert not ran(shell("dvc", "repro"))
    for folder in (STUDENT, EXPORT):
        assert json.loads(shell("python", "-m", "commands", "predict", folder, "the film was great").splitlines()[-1])[
            "label"
        ]
    shell("python", "-m", "commands", "release", "sst2", "data/metrics", "data/exported", "data/release/sst2")
    _serve(clone, env)
    assert network.attempts(log) == []


def _serve(clone: Path, env: dict[str, str]) -> None:
    """Serve an export for some seconds, and ask it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ask = urllib.request.Request(f"http://127.0.0.1:{port}/predict", b'{"text": "good"}')
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    command = ["python", "-m", "commands", "serve", EXPORT, "--port", str(port)]
    with subprocess.Popen(command, cwd=clone, env=env) as server:
        try:
            for _ in range(300):
                try:
                    assert "label" in json.loads(direct.open(ask, timeout=5).read())
                    break
                except OSError:
                    assert server.poll() is None
                    time.sleep(0.1)
            time.sleep(12)  # reports came after some seconds
        finally:
            os.kill(server.pid, signal.SIGINT)
