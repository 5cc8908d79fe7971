"""Every attempt to reach the network, as a recording proxy and Python's own sockets see it.

Imported first, before a library can read its settings: the environment names the proxy and turns nothing else off.
"""

import os
import socket
import sys
import tempfile
from pathlib import Path

SITE = Path(__file__).parent / "site"  # whose sitecustomize.py each Python reads that has it on its path
LOCAL = (None, "", "localhost", "127.0.0.1", b"127.0.0.1", "::1", socket.gethostname())
OURS = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
SILENCED = (
    "HF_",
    "MLFLOW_",
    "DO_NOT_TRACK",
    "DVC_",
    "NO_PROXY",
    "no_proxy",
    "TRANSFORMERS_",
    "FILBERT_",
)  # what users may not set


def watch() -> Path:
    """Start the proxy and the watch over this process and those that it forks; the file with a line for each attempt."""
    log = Path(tempfile.mkstemp(prefix="network-", suffix=".log")[1])
    watched = watched_environment(dict(os.environ), log)
    os.environ.clear()
    os.environ.update(watched)
    note_sockets(log)
    return log


def watched_environment(environment: dict[str, str], log: Path) -> dict[str, str]:
    """An environment with nothing silenced, whose programs reach for a proxy; `log` has what it and sockets saw."""
    port = _start_proxy(log)
    loud = {name: value for name, value in environment.items() if not name.startswith(SILENCED)}
    proxies = {each: f"http://127.0.0.1:{port}" for name in OURS for each in (name, name.lower())}
    return loud | proxies | {"NETWORK_LOG": str(log), "PYTHONPATH": str(SITE)}


def note_sockets(log: Path) -> None:
    """Note from now on which hosts this process, and those that it forks, look up or connect to."""

    def seen(event: str, words: tuple) -> None:
        if event in ("socket.getaddrinfo", "socket.gethostbyname") and words[0] not in LOCAL:
            _note(log, f"looked up {words[0]}")
        elif (
            event == "socket.connect"
            and isinstance(words[1], tuple)
            and not str(words[1][0]).startswith(("127.", "::1"))
        ):
            _note(log, f"connected to {words[1][0]}")

    sys.addaudithook(seen)


def attempts(log: Path) -> list[str]:
    """What was noted so far."""
    return log.read_text().splitlines()


def _note(log: Path, line: str) -> None:
    with log.open("a") as stream:
        stream.write(f"{line}\n")


def _start_proxy(log: Path) -> int:
    """A process that notes the first line of each request and refuses it; it ends with this one. Its port."""
    server = socket.create_server(("127.0.0.1", 0))
    if os.fork() == 0:
        parent = os.getppid()
        server.settimeout(1)
        while os.getppid() == parent:
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            with client:
                client.settimeout(1)
                try:
                    _note(log, client.recv(1 << 12).decode(errors="replace").splitlines()[0])
                    client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                except (OSError, IndexError):
                    _note(log, "a connection without a request")
        os._exit(0)
    port = server.getsockname()[1]
    server.close()
    return port
