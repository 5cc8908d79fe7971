"""Stages as forks of one process that has already imported torch, transformers and mlflow: 6 to 10 seconds less for each stage.

A stage's command, `python -m stages.NAME …`, is run as it would be by itself: with its own environment, arguments and exit status.
Any other command, any on a system other than Linux, and a light stage while the server still imports are ordinary processes
(run_stage.py). The server is this file, run by its path: it has imported the standard library and what it is told, so that tests
use it too.
"""

import atexit
import gc
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
from contextlib import suppress
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
LIGHT = ("stages.fetch", "stages.prepare")  # need none of these but mlflow: they do not wait while the server imports
LONGEST = 1 << 20  # bytes of a request


@dataclass
class ForkServer:
    """The client's side: one server for all threads of a run in one folder, started when the block is entered.

    Args:
        folder: the working directory of the server and of its stages.
        preloaded: the modules that it imports.
        env: while it imports them; None: this process's. A fork has its own.
    """

    folder: Path
    preloaded: tuple[str, ...] = PRELOADED
    env: dict[str, str] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    process: "subprocess.Popen[bytes] | None" = None
    connection: "socket.socket | None" = None

    def __enter__(self) -> Self:
        if sys.platform == "linux":
            self._open()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and not self._is_ready():
            self.process.kill()  # it has no forks yet
        if self.connection is not None:
            with suppress(OSError):  # the server has ended already
                self.connection.shutdown(
                    socket.SHUT_RDWR
                )  # it ends, even where another child has inherited this descriptor
            self.connection.close()
        if self.process is not None:
            self.process.wait()

    def start(self, command: str, env: dict[str, str], output: int) -> "Fork | None":
        """Start a stage's command, whose output goes to the descriptor `output`; None where it is no such command, or starts
        sooner by itself."""
        if sys.platform != "linux" or not (match := COMMAND.fullmatch(command.strip())):
            return None
        if match[1] in LIGHT and not self._is_ready():
            return None
        return self.fork(["-m", match[1], *shlex.split(match[2] or "")], env, output)

    def fork(self, words: list[str], env: dict[str, str], output: int) -> "Fork":
        """Start `python WORDS` in the folder: `-m MODULE …` or `SCRIPT …`."""
        ours, theirs = socket.socketpair()
        request = {"words": words, "folder": str(self.folder), "env": env}
        with theirs, open(os.devnull) as nothing:
            self.send(json.dumps(request).encode(), [nothing.fileno(), output, output, theirs.fileno()])
        return Fork(ours)

    def send(self, request: bytes, descriptors: list[int]) -> None:
        """Send a request with standard input, output and error, and where the process id and the exit status are written."""
        with self.lock:
            socket.send_fds(self._open(), [request], descriptors)

    def _is_ready(self) -> bool:
        """Whether the server has imported everything; it says so once, which nobody reads."""
        return self.connection is not None and bool(select.select([self.connection], [], [], 0)[0])

    def _open(self) -> socket.socket:
        """The connection to the server, which is started anew where it has ended."""
        if self.connection is None or self.process is None or self.process.poll() is not None:
            self.connection, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
            command = [sys.executable, __file__, str(theirs.fileno()), *self.preloaded]
            with theirs:
                self.process = subprocess.Popen(
                    command, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
                )
        return self.connection


@dataclass
class Fork:
    """A command that is running; its process id comes first, its exit status at the end."""

    socket: socket.socket

    def wait(self) -> int:
        """The exit status, as subprocess has it; that of a killed process where the server itself was killed."""
        with self.socket:
            said = b"".join(iter(lambda: self.socket.recv(64), b"")).split()
        return int(said[1]) if len(said) > 1 else -signal.SIGKILL


def serve(connection: socket.socket, preloaded: list[str]) -> None:
    """Fork for each request until the client is gone; say how each fork ended."""
    sys.path[0] = os.getcwd()
    for name in preloaded:
        import_module(name)
    with suppress(BrokenPipeError, ConnectionResetError):  # the client has left
        connection.send(b"ready")
    gc.freeze()  # else a fork walks, and so copies, the objects of all libraries when it collects
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
            try:
                message, descriptors, _, _ = socket.recv_fds(connection, LONGEST, 4)
            except ConnectionResetError:  # the client left without reading that this was ready
                return
            if not message:
                return
            *standard, status = descriptors
            if (process := os.fork()) == 0:
                inherited = [connection.fileno(), wake, woken, status, *running.values()]
                _become(json.loads(message), standard, inherited)
            for descriptor in standard:
                os.close(descriptor)
            running[process] = status
            _tell(status, f"{process}\n")


def _report(running: dict[int, int]) -> None:
    """Write the exit status of each fork that has ended, and close its descriptor."""
    for process in list(running):
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            descriptor = running.pop(process)
            _tell(descriptor, str(os.waitstatus_to_exitcode(status)))
            os.close(descriptor)


def _tell(client: int, said: str) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
        os.write(client, said.encode())


def _become(request: dict[str, Any], standard: list[int], inherited: list[int]) -> None:
    """Turn this fork into the process of a command; it does not return."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for descriptor in inherited:
        os.close(descriptor)
    for place, descriptor in enumerate(standard):
        os.dup2(descriptor, place)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    if (torch := sys.modules.get("torch")) and (threads := request["env"].get("OMP_NUM_THREADS")):
        torch.set_num_threads(int(threads))  # it read the variable when it was imported
    code = 1
    try:
        _run(request["words"], request["folder"])
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):  # what Python does at its end
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(words: list[str], folder: str) -> None:
    """`python WORDS` in a folder."""
    os.chdir(folder)
    sys.path[0] = folder
    name = words[1] if words[0] == "-m" else words[0]
    Path("/proc/self/comm").write_text(name.removeprefix("stages.")[-15:])  # its name in `top` and `ps`
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(name, run_name="__main__")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
