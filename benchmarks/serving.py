"""A load test of the service on this machine's own address: requests a second and times at 1, 8 and 64 clients, with real texts.

A client is a thread with one connection of the standard library: asyncio's connections in one pool (httpx) took 1 ms of CPU a
request with 8 clients and 4 ms with 64, several times what the service itself takes, so that they measured themselves.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import numpy as np
import typer

from filbert.data.arrow import read_table
from filbert.evaluation.tables import markdown_table
from filbert.runtime.files import write_text

CLIENTS = (1, 8, 64)
HEAD = ["service", "clients", "requests/s", "p50 ms", "p95 ms", "p99 ms", "failed", "client's CPU, ms a request"]
SECONDS = 60  # that an answer may take


def main(
    prepared: Path,
    column: str,
    url: Annotated[
        list[str],
        typer.Argument(help="running services, as `python -m commands.serve` says: http://127.0.0.1:8080/predict"),
    ],
    out: Annotated[Path, typer.Option(help="the Markdown file to write")] = Path("docs/benchmarks/serving.md"),
    requests: int = 2000,
) -> None:
    """Send test rows of PREPARED to each URL, one text a request."""
    texts = read_table(prepared / "test.arrow")[column].to_pylist()
    sent = [texts[i % len(texts)] for i in range(requests)]
    table = markdown_table([HEAD, *(load(one, sent, clients) for one in url for clients in CLIENTS)])
    write_text(out, f"# The service under load\n\n{requests} requests of one text each.\n\n{table}\n")
    print(out.read_text())


def load(url: str, texts: list[str], clients: int) -> list[str]:
    """One line of the table: all texts, sent by so many clients, each waiting for its answer."""
    address, left = urlsplit(url), iter(texts)
    _, health = _ask(HTTPConnection(address.netloc, timeout=SECONDS), "GET", "/health")

    def one(_: int) -> list[tuple[int, float]]:
        connection = HTTPConnection(address.netloc, timeout=SECONDS)
        return [_timed(connection, address.path, text) for text in left]

    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        found = [each for answers in pool.map(one, range(clients)) for each in answers]
    rate, cost = len(texts) / (time.perf_counter() - start), 1000 * (time.process_time() - cpu) / len(texts)
    times = [f"{1000 * value:.1f}" for value in np.quantile([seconds for _, seconds in found], (0.5, 0.95, 0.99))]
    failed = sum(status != 200 for status, _ in found)
    return [f"{health['student']} ({health['model']})", str(clients), f"{rate:.0f}", *times, str(failed), f"{cost:.2f}"]


def _timed(connection: HTTPConnection, path: str, text: str) -> tuple[int, float]:
    """The status of a request, and its seconds."""
    start = time.perf_counter()
    status, _ = _ask(connection, "POST", path, json.dumps({"text": text}).encode())
    return status, time.perf_counter() - start


def _ask(connection: HTTPConnection, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
    connection.request(method, path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


if __name__ == "__main__":
    typer.run(main)
