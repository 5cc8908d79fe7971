"""An HTTP service over one model: requests that arrive within a few milliseconds are answered in one batch.

POST /predict takes `{"text": …}` or `{"texts": […]}`, a pair as a list of two; GET /health and GET /metrics (Prometheus' text) say
how it is. What is too long, too much or no text gets a 4xx with the reason; a full queue gets 429; what was accepted is answered.
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

from filbert.export.inference import Answer, Predictor, Text

RECENT = 10_000  # requests whose times the quantiles are of
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
                jobs.append(await asyncio.wait_for(self.jobs.get(), max(0.0, end - time.monotonic())))
            except TimeoutError:
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
    app = FastAPI(title=title, lifespan=lifespan, **dict.fromkeys(pages))  # type: ignore[arg-type]

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        start, count = time.monotonic(), 0
        try:
            texts, single, every, abstain = _read(await _body(request, limits), model, limits)
            count = len(texts)
            answers = await batcher.answer(texts, every, abstain)
            response = JSONResponse(answers[0] if single else {"answers": answers})
        except RefusedError as refused:
            response = JSONResponse({"error": refused.reason}, refused.status)
        except Exception as error:
            response = JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)
        meter.add(response.status_code, count if response.status_code == 200 else 0, time.monotonic() - start)
        return response

    @app.get("/health")
    async def health() -> dict[str, Any]:
        shown = ("task", "student", "seed", "model", "labels")
        return {"status": "ok"} | {name: getattr(model.card, name) for name in shown}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(meter.page(batcher))

    return app


async def _body(request: Request, limits: Limits) -> Any:
    """The JSON of a request.

    Raises:
        RefusedError: it is too large or is no JSON.
    """
    read = bytearray()
    async for part in request.stream():
        read += part
        if len(read) > limits.body:
            raise RefusedError(413, f"expected at most {limits.body} bytes")
    try:
        return json.loads(read)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"expected JSON, got {error}") from error


def _read(body: Any, model: Predictor, limits: Limits) -> tuple[list[Text], bool, bool, float | None]:
    """The texts of a request, whether it is a single one, whether all probabilities are wanted, and the wanted precision.

    Raises:
        RefusedError: something is missing, unknown, too long or too much.
    """
    if not isinstance(body, dict) or ("text" in body) == ("texts" in body):
        raise RefusedError(422, 'expected {"text": …} or {"texts": […]}')
    if unknown := set(body) - {"text", "texts", "all", "abstain"}:
        raise RefusedError(422, f"unknown {', '.join(sorted(unknown))}; known are text, texts, all, abstain")
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
        raise RefusedError(422, f"all: expected true or false, got {every!r:.40}")
    try:
        if abstain is not None:
            model.threshold(float(abstain))
    except Exception as error:
        raise RefusedError(422, str(error)) from error
    return texts, "text" in body, every, None if abstain is None else float(abstain)
