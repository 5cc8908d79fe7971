"""A model as an HTTP service: `filbert serve MODEL`; /predict, /health, /metrics."""

from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from filbert.export import folder as folders
from filbert.export.inference import open_model
from filbert.export.server import Limits, new_app
from filbert.runtime.progress import log, logged_warnings
from stages import run

DEFAULT = Limits()
GRACE_SECONDS = 10  # for requests that are being answered when it is stopped


def serve(
    folder: Path,
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    threads: Annotated[int | None, typer.Option(min=1, help="of each batch; all cores if not given")] = None,
    rows: Annotated[int, typer.Option(min=1, help="texts of one request")] = DEFAULT.rows,
    characters: Annotated[int, typer.Option(min=1, help="of one text")] = DEFAULT.characters,
    queue: Annotated[int, typer.Option(min=1, help="texts that may wait; more are refused with 429")] = DEFAULT.queue,
    batch: Annotated[int, typer.Option(min=1, help="texts answered together")] = DEFAULT.batch,
    wait_ms: Annotated[float, typer.Option(min=0, help="for more texts, after the first")] = DEFAULT.wait_ms,
    float32: Annotated[
        bool, typer.Option("--float32", help="the float32 file, also where int8 passed the gate")
    ] = False,
) -> None:
    """Answer requests with the model in FOLDER until Ctrl-C."""
    with logged_warnings():
        model = open_model(folder, threads, folders.FLOAT32 if float32 else "")
    app = new_app(model, Limits(rows, characters, queue, batch, wait_ms))
    log(f"{model.card.student} on {model.card.task} ({model.card.model}) at http://{host}:{port}/predict")
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


if __name__ == "__main__":
    run(serve)
