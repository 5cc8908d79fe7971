"""A `python` that has imported the large libraries: a stage, or a script, is a fork of it and starts at once instead of after 8 s.

It has imported nothing of this repository: a fork does that itself, from its working directory, as `python -m` does.
"""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.fork_server import LONGEST, ForkServer

LIBRARIES = ("torch", "transformers.models.bert.modeling_bert", "transformers.pipelines", "mlflow", "matplotlib.pyplot",
             "mlflow.store.tracking.sqlalchemy_store", "plotly.graph_objects", "scipy.stats", "sklearn.metrics",
             "dvc.cli", "dvc.commands.repro", "dvc.repo.experiments.run")  # fmt: skip
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
if sys.argv[1] != "-m" and not sys.argv[1].endswith(".py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
request = {{"words": sys.argv[1:], "folder": os.getcwd(), "env": dict(os.environ)}}
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({address!r})
    socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
    process = int(server.recv(64) or sys.exit(1))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(process, number))
    sys.exit(int(server.recv(64) or 1) % 256)
"""


@contextmanager
def preloaded_python(folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A `python` in `folder`, for `python -m MODULE …` and `python SCRIPT …`; where forks are not safe, the real one.

    Args:
        environment: while the libraries are imported; a fork has its caller's
    """
    if sys.platform != "linux":
        (folder / "python").symlink_to(sys.executable)
        yield folder / "python"
        return
    with ForkServer(folder, LIBRARIES, environment) as forks, python_of(forks, folder) as python:
        yield python


@contextmanager
def python_of(forks: ForkServer, folder: Path) -> Iterator[Path]:
    """A `python` in `folder` whose commands are forks of a server."""
    python, address = folder / "python", str(folder / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(address)
        listening.listen()
        threading.Thread(target=_relay, args=(listening, forks), daemon=True).start()
        python.write_text(CLIENT.format(python=sys.executable, address=address))
        python.chmod(0o755)
        yield python
        listening.shutdown(socket.SHUT_RDWR)


def _relay(listening: socket.socket, forks: ForkServer) -> None:
    """Hand the server each client's command, and the client's connection, to which it writes process id and exit status."""
    with suppress(OSError):  # shut down
        while True:
            client, _ = listening.accept()
            with client:
                request, standard, _, _ = socket.recv_fds(client, LONGEST, 3)
                if request:
                    forks.send(request, [*standard, client.fileno()])
            for descriptor in standard:
                os.close(descriptor)
