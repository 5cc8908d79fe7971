"""A `python` that has imported the large libraries: a stage, or a script, is a fork of it and starts at once instead of after 8 s.

It has imported nothing of this repository: a fork does that itself, from its working directory, as `python -m` does.
"""

import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

LIBRARIES = ("torch", "transformers.models.bert.modeling_bert", "transformers.pipelines", "mlflow", "matplotlib.pyplot",
             "mlflow.store.tracking.sqlalchemy_store", "plotly.graph_objects", "scipy.stats", "sklearn.metrics",
             "dvc.cli", "dvc.commands.repro", "dvc.repo.experiments.run")  # fmt: skip
CLIENT = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1] != "-m" and not sys.argv[1].endswith(".py"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit((server.recv(1) or b"\\x01")[0])
"""


@contextmanager
def preloaded_python(folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A `python` in `folder`, for `python -m MODULE …` and `python SCRIPT …`; where forks are not safe, the real one.

    Args:
        environment: while the libraries are imported; a fork has its caller's
    """
    python, address = folder / "python", folder / "socket"
    if sys.platform != "linux":
        python.symlink_to(sys.executable)
        yield python
        return
    command, pipe = [sys.executable, __file__, str(address)], subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as server:  # it ends with its input
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        python.write_text(CLIENT.format(python=sys.executable, address=str(address)))
        python.chmod(0o755)
        yield python


def serve(address: str) -> None:
    """Import the libraries; then fork for each client, whose command the fork runs, until the standard input ends."""
    for name in LIBRARIES:
        import_module(name)
    gc.freeze()  # else each fork walks, and so copies, the objects of all libraries when it ends
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        print("ready", flush=True)
        while listening in select.select([listening, sys.stdin], [], [])[0]:
            client, _ = listening.accept()
            if not os.fork():
                break
            client.close()
        else:
            return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    run_command(client)


def run_command(client: socket.socket) -> None:
    """Run one client's command in a fork, and tell the client its exit status."""
    _, standard, _, _ = socket.recv_fds(client, 1, 3)
    words, folder, environment = json.loads(b"".join(iter(lambda: client.recv(1 << 16), b"")))
    if child := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(OSError):
            client.sendall(bytes([status % 256]))
        os._exit(0)
    client.close()
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0] = folder
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
