"""Every attempt to reach the network, as a recording proxy and Python's own sockets see it.

Imported first, before a library can read its settings: the environment names the proxy and turns nothing else off.
"""

import os
import socket
import sys
import tempfile
from pathlib import Path

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
    for name in [name for name in os.environ if name.startswith(SILENCED)]:
        del os.environ[name]
    port = _start_proxy(log)
    for name in OURS:
        os.environ[name] = os.environ[name.lower()] = f"http://127.0.0.1:{port}"

    def seen(event: str, words: tuple) -> None:
        if event == "socket.getaddrinfo" and words[0] not in (None, "localhost", "127.0.0.1", b"127.0.0.1", "::1", ""):
            _note(log, f"looked up {words[0]}")
        elif (
            event == "socket.connect"
            and isinstance(words[1], tuple)
            and not str(words[1][0]).startswith(("127.", "::1"))
        ):
            _note(log, f"connected to {words[1][0]}")

    sys.addaudithook(seen)
    return log


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
