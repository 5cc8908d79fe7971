"""Stages as forks of one process that has already imported torch, transformers and mlflow: 6 to 10 seconds less for each stage.

A stage's command, `python -m stages.NAME …`, is run as it would be by itself: with its own environment, arguments and
exit status. Any other command, and any on a system other than Linux, is an ordinary process (run_stage.py).
"""

import json
import os
import re
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Self

COMMAND = re.compile(r"python -m (stages\.\w+)(?: (.*))?", re.DOTALL)
PRELOADED = (
    "filbert.methods.context",
    "transformers.models.bert.modeling_bert",
    "mlflow.store.tracking.sqlalchemy_store",  # what a run in a file needs of sqlalchemy; nothing is opened here
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.transformers",
    "stages",
)
LONGEST = 1 << 20  # bytes of a request


@dataclass
class ForkServer:
    """The client's side: one server for all threads of a run in one folder, started with the first command."""

    folder: Path
    lock: threading.Lock = field(default_factory=threading.Lock)
    process: "subprocess.Popen[bytes] | None" = None
    connection: "socket.socket | None" = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.connection is not None:
            self.connection.close()  # the server ends
        if self.process is not None:
            self.process.wait()

    def start(self, command: str, env: dict[str, str], output: int) -> "Fork | None":
        """Start a stage's command, whose output goes to the descriptor `output`; None where it is no such command."""
        if sys.platform != "linux" or not (match := COMMAND.fullmatch(command.strip())):
            return None
        ours, theirs = socket.socketpair()
        request = {"module": match[1], "arguments": shlex.split(match[2] or ""), "env": env}
        with self.lock, theirs:
            socket.send_fds(self._open(), [json.dumps(request).encode()], [output, theirs.fileno()])
        return Fork(ours)

    def _open(self) -> socket.socket:
        """The connection to the server, which is started anew where it has ended."""
        if self.connection is None or self.process is None or self.process.poll() is not None:
            self.connection, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            with theirs:
                self.process = subprocess.Popen(
                    command, cwd=self.folder, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
        return self.connection


@dataclass
class Fork:
    """A command that is running; its process id comes first, its exit status at the end."""

    socket: socket.socket

    def wait(self) -> int:
        """The exit status, as subprocess has it; that of a killed process where the server itself was killed."""
        with self.socket:
            said = b"".join(iter(lambda: self.socket.recv(64), b""))
        return int(said or -signal.SIGKILL)


def serve(connection: socket.socket) -> None:
    """Fork for each request until the client is gone; say how each fork ended."""
    for name in PRELOADED:
        import_module(name)
    wake, woken = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the stages themselves
    running: dict[int, int] = {}  # by process id the descriptor to which its status is written
    while True:
        ready = select.select([connection.fileno(), wake], [], [])[0]
        if wake in ready:
            os.read(wake, 1 << 16)
            _report(running)
        if connection.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(connection, LONGEST, 2)
            if not message:
                return
            output, status = descriptors
            if (process := os.fork()) == 0:
                _become(json.loads(message), output, [connection.fileno(), wake, woken, status, *running.values()])
            os.close(output)
            running[process] = status


def _report(running: dict[int, int]) -> None:
    """Write the exit status of each fork that has ended, and close its descriptor."""
    for process in list(running):
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            descriptor = running.pop(process)
            os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(descriptor)


def _become(request: dict[str, Any], output: int, inherited: list[int]) -> None:
    """Turn this fork into the process of a stage; it does not return."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for descriptor in inherited:
        os.close(descriptor)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [request["module"], *request["arguments"]]
    Path("/proc/self/comm").write_text(request["module"].removeprefix("stages."))  # its name in `top` and `ps`
    code = 1
    if (torch := sys.modules.get("torch")) and (threads := request["env"].get("OMP_NUM_THREADS")):
        torch.set_num_threads(int(threads))  # it read the variable when it was imported
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
