"""An HTTP service over one model: requests that arrive within a few milliseconds are answered in one batch.

POST /predict takes `{"text": …}` or `{"texts": […]}`, a pair as a list of two; GET /health and GET /metrics (Prometheus' text) say
how it is. What is too long, too much, too slow or no text gets a 4xx with the reason; a full queue gets 429; what was accepted is
answered, whatever else comes.
"""

import asyncio
import contextlib
import json
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from filbert import FilbertError
from filbert.export.inference import Answer, Predictor, Text

RECENT = 10_000  # requests whose times the quantiles are of
SHOWN = 40  # characters of what cannot be used, in a reason
QUANTILES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Limits:
    """What a service takes on."""

    rows: int = 256  # texts of one request
    characters: int = 20_000  # of one text
    queue: int = 1024  # texts that wait or are being answered
    batch: int = 64  # texts answered together
    wait_ms: float = 2.0  # for more, after the first
    body: int = 8_000_000  # bytes of a request
    seconds: float = 30.0  # in which its body has to come


class RefusedError(Exception):
    """A request gets a 4xx answer."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class Job:
    """The texts of one request, and where their answers are awaited."""

    texts: list[Text]
    options: tuple[bool, float | None]  # all probabilities, wanted precision
    answers: asyncio.Future[list[Answer]]


class Batcher:
    """Answers the texts of concurrent requests together, in one thread."""

    def __init__(self, model: Predictor, limits: Limits):
        self.model, self.limits = model, limits
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()
        self.pending = 0  # texts accepted and not yet answered
        self.batches = 0
        self.thread = ThreadPoolExecutor(1)

    async def answer(self, texts: list[Text], every: bool, abstain: float | None) -> list[Answer]:
        """The answers to the texts of one request.

        Raises:
            RefusedError: the queue is full.
        """
        if self.pending + len(texts) > self.limits.queue:
            raise RefusedError(
                429, f"the queue is full: {self.pending} texts wait, {self.limits.queue} may; try again later"
            )
        job = Job(texts, (every, abstain), asyncio.get_running_loop().create_future())
        self.pending += len(texts)
        try:
            self.jobs.put_nowait(job)
            return await job.answers
        finally:
            self.pending -= len(texts)

    async def run(self) -> None:
        """Take jobs as they come, for ever."""
        while True:
            jobs = await self._gather()
            for options in dict.fromkeys(job.options for job in jobs):
                await self._answer([job for job in jobs if job.options == options])

    async def _gather(self) -> list[Job]:
        """The next job, and those that follow it within the wait until a batch is full."""
        jobs = [await self.jobs.get()]
        end = time.monotonic() + self.limits.wait_ms / 1000
        while sum(len(job.texts) for job in jobs) < self.limits.batch:
            try:
                left = end - time.monotonic()
                jobs.append(await asyncio.wait_for(self.jobs.get(), left) if left > 0 else self.jobs.get_nowait())
            except (TimeoutError, asyncio.QueueEmpty):
                break
        return jobs

    async def _answer(self, jobs: Sequence[Job]) -> None:
        texts = [text for job in jobs for text in job.texts]
        every, abstain = jobs[0].options
        self.batches += 1
        try:
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(self.thread, lambda: self.model.predict(texts, every, abstain))
        except Exception as error:  # the service outlives whatever one batch meets
            if len(jobs) > 1:  # and one request does not fail those that came with it
                for job in jobs:
                    await self._answer([job])
                return
            for job in jobs:
                if not job.answers.done():
                    job.answers.set_exception(error)
            return
        left = iter(answers)
        for job in jobs:
            found = [next(left) for _ in job.texts]
            if not job.answers.done():  # its client has gone
                job.answers.set_result(found)


class Meter:
    """Counts and recent times, as Prometheus reads them."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.texts = 0
        self.seconds: deque[float] = deque(maxlen=RECENT)
        self.total = 0.0

    def add(self, status: int, texts: int, seconds: float) -> None:
        self.requests[status] += 1
        self.texts += texts
        if status == 200:
            self.seconds.append(seconds)
            self.total += seconds

    def page(self, batcher: Batcher) -> str:
        lines = ["# TYPE filbert_requests_total counter"]
        lines += [
            f'filbert_requests_total{{status="{status}"}} {count}' for status, count in sorted(self.requests.items())
        ]
        lines += ["# TYPE filbert_texts_total counter", f"filbert_texts_total {self.texts}"]
        lines += ["# TYPE filbert_batches_total counter", f"filbert_batches_total {batcher.batches}"]
        lines += ["# TYPE filbert_pending_texts gauge", f"filbert_pending_texts {batcher.pending}"]
        lines += ["# TYPE filbert_request_seconds summary"]
        if self.seconds:
            found = zip(QUANTILES, np.quantile(self.seconds, QUANTILES), strict=True)
            lines += [f'filbert_request_seconds{{quantile="{q:g}"}} {value:.6f}' for q, value in found]
        lines += [
            f"filbert_request_seconds_sum {self.total:.6f}",
            f"filbert_request_seconds_count {self.requests[200]}",
        ]
        return "\n".join(lines) + "\n"


def new_app(model: Predictor, limits: Limits) -> FastAPI:
    """The service as an ASGI application."""
    batcher, meter = Batcher(model, limits), Meter()

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    title, pages = f"{model.card.student} on {model.card.task}", ("docs_url", "redoc_url", "openapi_url")
    app = FastAPI(title=title, lifespan=lifespan, redirect_slashes=False, **dict.fromkeys(pages))  # type: ignore[arg-type]

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        start, count = time.monotonic(), 0
        try:
            texts, single, every, abstain = _read(await _body(request, limits), model, limits)
            count = len(texts)
            answers = await batcher.answer(texts, every, abstain)
            response = JSONResponse(answers[0] if single else {"answers": answers})
        except RefusedError as refused:
            response = _error(refused.status, refused.reason)
        except ClientDisconnect:
            response = _error(400, "the client has gone before the end of its request")
        except Exception as error:
            response = _error(500, f"{type(error).__name__}: {error}")
        meter.add(response.status_code, count if response.status_code == 200 else 0, time.monotonic() - start)
        return response

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        meter.add(error.status_code, 0, 0.0)
        known = ", ".join(f"{next(iter(route.methods))} {route.path}" for route in app.routes)  # type: ignore[attr-defined]
        reason = f"expected {known}; got {request.method} {request.url.path[:SHOWN]}"
        return _error(error.status_code, reason, error.headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        shown = ("task", "student", "seed", "model", "labels")
        return {"status": "ok"} | {name: getattr(model.card, name) for name in shown}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(meter.page(batcher))

    return app


def _error(status: int, reason: str, headers: Any = None) -> JSONResponse:
    """An answer that says why there is none; what is not Unicode in it is escaped."""
    return JSONResponse({"error": reason.encode(errors="backslashreplace").decode()}, status, headers)


async def _body(request: Request, limits: Limits) -> Any:
    """The JSON of a request.

    Raises:
        RefusedError: it is too large, too slow, compressed or no JSON.
    """
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise RefusedError(415, f"expected JSON that is not compressed, got Content-Encoding {encoding[:SHOWN]}")
    read = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                read += part
                if len(read) > limits.body:
                    raise RefusedError(413, f"expected at most {limits.body} bytes")
    except TimeoutError as error:
        raise RefusedError(
            408, f"expected the whole request within {limits.seconds:g} s, got {len(read)} bytes"
        ) from error
    try:
        return json.loads(read, parse_constant=_refuse_constant, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"expected JSON, got {error}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object that has a key twice")
    return found


def _read(body: Any, model: Predictor, limits: Limits) -> tuple[list[Text], bool, bool, float | None]:
    """The texts of a request, whether it is a single one, whether all probabilities are wanted, and the wanted precision.

    Raises:
        RefusedError: something is missing, unknown, too long or too much.
    """
    if not isinstance(body, dict) or ("text" in body) == ("texts" in body):
        raise RefusedError(422, 'expected {"text": …} or {"texts": […]}')
    if unknown := set(body) - {"text", "texts", "all", "abstain"}:
        raise RefusedError(422, f"unknown {', '.join(sorted(unknown)):.{SHOWN}}; known are text, texts, all, abstain")
    found = [body["text"]] if "text" in body else body["texts"]
    if not isinstance(found, list) or not found:
        raise RefusedError(422, "texts: expected a list of at least one text")
    if len(found) > limits.rows:
        raise RefusedError(413, f"expected at most {limits.rows} texts in a request, got {len(found)}")
    texts = [tuple(text) if isinstance(text, list) else text for text in found]
    for number, text in enumerate(texts, 1):
        if problem := model.problem(text):
            raise RefusedError(422, f"text {number}: {problem}")
        if (length := max(map(len, text if isinstance(text, tuple) else (text,)))) > limits.characters:
            raise RefusedError(413, f"text {number}: expected at most {limits.characters} characters, got {length}")
    every, abstain = body.get("all", False), body.get("abstain")
    if not isinstance(every, bool):
        raise RefusedError(422, f"all: expected true or false, got {every!r:.{SHOWN}}")
    if abstain is not None and (isinstance(abstain, bool) or not isinstance(abstain, int | float)):
        raise RefusedError(422, f"abstain: expected a number, got {abstain!r:.{SHOWN}}")
    try:
        model.threshold(abstain)
    except (FilbertError, OverflowError) as error:
        raise RefusedError(422, str(error)) from error
    return texts, "text" in body, every, abstain
