"""What reaches for the network is seen, and nothing does."""

import subprocess
import sys

import pytest
from tiny import ROOT

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
