"""A load test of the service on this machine's own address: requests a second and times at 1, 8 and 64 clients, with real texts."""

import asyncio
import time
from pathlib import Path
from typing import Annotated

import httpx
import numpy as np
import typer

from filbert.data.arrow import read_table
from filbert.evaluation.tables import markdown_table
from filbert.runtime.files import write_text

CLIENTS = (1, 8, 64)


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
    rows = [
        asyncio.run(load(one, [texts[i % len(texts)] for i in range(requests)], clients))
        for one in url
        for clients in CLIENTS
    ]
    table = markdown_table([["service", "clients", "requests/s", "p50 ms", "p95 ms", "p99 ms", "failed"], *rows])
    write_text(out, f"# The service under load\n\n{requests} requests of one text each.\n\n{table}\n")
    print(out.read_text())


async def load(url: str, texts: list[str], clients: int) -> list[str]:
    """One line of the table: all texts, sent by so many clients, each waiting for its answer."""
    left, seconds, failed = iter(texts), [], 0
    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=clients), timeout=60) as client:
        health = (await client.get(url.replace("/predict", "/health"))).json()

        async def one() -> None:
            nonlocal failed
            for text in left:
                start = time.perf_counter()
                failed += (await client.post(url, json={"text": text})).status_code != 200
                seconds.append(time.perf_counter() - start)

        start = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        rate = len(texts) / (time.perf_counter() - start)
    times = [f"{1000 * value:.1f}" for value in np.quantile(seconds, (0.5, 0.95, 0.99))]
    return [f"{health['student']} ({health['model']})", str(clients), f"{rate:.0f}", *times, str(failed)]


if __name__ == "__main__":
    typer.run(main)
