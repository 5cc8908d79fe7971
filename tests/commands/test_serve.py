"""The service: answers as `predict` gives them, requests answered together, limits with their reasons, rubbish survived."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from export_files import export_folder
from tiny import sentences

from benchmarks.serving import load
from filbert.export.inference import Predictor, open_model
from filbert.export.server import Batcher, Limits, new_app

TEXTS = [text for text, _ in sentences(64)]
LIMITS = Limits(rows=8, characters=100, queue=200, batch=16, wait_ms=5, body=2000, seconds=0.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Predictor:
    thresholds = {"0.9": {"threshold": 2.0, "coverage": 0.0}}
    return open_model(export_folder(teacher, tmp_path_factory.mktemp("export") / "model", thresholds=thresholds))


def served(model: Predictor, calls: Any, limits: Limits = LIMITS) -> Any:
    """What `calls(client)` gives, while the service runs."""

    async def run() -> Any:
        app = new_app(model, limits)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            return await calls(client)

    return asyncio.run(run())


def post(client: httpx.AsyncClient, body: Any) -> Any:
    return client.post("/predict", content=json.dumps(body))


def test_one_and_many_are_answered_as_by_predict(model: Predictor) -> None:
    async def calls(client: httpx.AsyncClient) -> list[httpx.Response]:
        bodies = ({"text": TEXTS[0], "all": True}, {"texts": TEXTS[:5]}, {"text": TEXTS[0], "abstain": 0.9})
        return [await post(client, body) for body in bodies]

    one, many, unsure = served(model, calls)
    wanted = model.predict(TEXTS[:5], every=True)
    assert one.json()["probabilities"] == pytest.approx(wanted[0]["probabilities"], abs=1e-5)
    assert [a["label"] for a in many.json()["answers"]] == [a["label"] for a in wanted]
    assert unsure.json()["label"] is None


@pytest.mark.parametrize("wait", [0, 50])
def test_what_came_together_is_one_batch_with_and_without_a_wait(wait: int, model: Predictor) -> None:
    batcher = Batcher(model, replace(LIMITS, wait_ms=wait, batch=64))

    async def run() -> list[Any]:
        running = asyncio.create_task(batcher.run())
        found = await asyncio.gather(*(batcher.answer([text], False, None) for text in TEXTS[:10]))
        running.cancel()
        return found

    assert [len(answers) for answers in asyncio.run(run())] == [1] * 10
    assert batcher.batches == 1


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "expected {"),
        ([1], 422, "expected {"),
        ({"text": "a", "texts": ["a"]}, 422, "expected {"),
        ({"texts": []}, 422, "at least one text"),
        ({"texts": "good"}, 422, "expected a list"),
        ({"text": ""}, 422, "text 1: expected text in sentence, got an empty one"),
        ({"texts": ["good", 3]}, 422, "text 2: expected text in sentence, got 3"),
        ({"text": ["a", "b"]}, 422, "expected one text (sentence), got a pair"),
        ({"text": "a" * 101}, 413, "expected at most 100 characters, got 101"),
        ({"texts": ["good"] * 9}, 413, "expected at most 8 texts in a request, got 9"),
        ({"text": "good " * 1000}, 413, "expected at most 2000 bytes"),
        ({"text": "good", "more": 1}, 422, "unknown more"),
        ({"text": "good", "all": 1}, 422, "all: expected true or false"),
        ({"text": "good", "abstain": 0.5}, 422, "abstain: expected a precision"),
        ({"text": "good", "abstain": "0.9"}, 422, "abstain: expected a number, got '0.9'"),
        ({"text": "good", "abstain": True}, 422, "abstain: expected a number, got True"),
        ({"text": "good", "abstain": [0.9]}, 422, "abstain: expected a number"),
        ({"text": "good", "abstain": 10**400}, 422, "too large"),
        ({"text": "good", "\ud800" * 50: 1}, 422, "unknown \\ud800"),
        ({"text": None}, 422, "got None"),
        ({"text": []}, 422, "got 0 texts"),
        ({"texts": [{"a": 1}]}, 422, "text 1: expected text in sentence, got {'a': 1}"),
        ({"texts": None}, 422, "expected a list"),
        ("good", 422, "expected {"),
        (None, 422, "expected {"),
        (3.5, 422, "expected {"),
    ],
)
def test_what_cannot_be_answered_gets_its_reason(body: Any, status: int, said: str, model: Predictor) -> None:
    response = served(model, lambda client: post(client, body))
    assert response.status_code == status
    assert said in response.json()["error"]


def test_rubbish_is_refused_and_health_and_metrics_tell(model: Predictor) -> None:
    async def calls(client: httpx.AsyncClient) -> list[httpx.Response]:
        rubbish = [await client.post("/predict", content=content) for content in (b"\xff{", b"[" * 1900)]
        fine = [await client.get("/predict"), await post(client, {"text": "good"})]
        return [*rubbish, *fine, await client.get("/health"), await client.get("/metrics")]

    found = served(model, calls)
    assert [response.status_code for response in found] == [400, 400, 405, 200, 200, 200]
    assert found[4].json()["task"] == "sst2"
    for line in ('filbert_requests_total{status="200"} 1', 'filbert_requests_total{status="400"} 2', "filbert_texts_total 1",
                 'filbert_request_seconds{quantile="0.99"}', "filbert_pending_texts 0"):  # fmt: skip
        assert line in found[5].text


def test_sixty_four_clients_some_with_rubbish_lose_nothing(model: Predictor) -> None:
    async def calls(client: httpx.AsyncClient) -> tuple[list[httpx.Response], str]:
        bodies = [{"text": text} if number % 4 else {"text": 3} for number, text in enumerate(TEXTS)]
        found = await asyncio.gather(*(post(client, body) for body in bodies))
        return found, (await client.get("/metrics")).text

    found, page = served(model, calls)
    wanted = model.predict(TEXTS)
    for number, (response, answer) in enumerate(zip(found, wanted, strict=True)):
        assert response.status_code == (200 if number % 4 else 422)
        if number % 4:
            assert response.json()["probability"] == pytest.approx(answer["probability"], abs=1e-5)
    batches = int(next(line for line in page.splitlines() if line.startswith("filbert_batches_total")).split()[1])
    assert batches < 48  # of 48 requests: some were answered together


def test_a_full_queue_says_so_and_what_was_accepted_is_answered(model: Predictor) -> None:
    async def calls(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(post(client, {"texts": TEXTS[:8]}) for _ in range(6)))

    found = served(model, calls, Limits(rows=8, characters=100, queue=20, batch=64, wait_ms=50))
    statuses = [response.status_code for response in found]
    assert statuses.count(200) == 2
    assert statuses.count(429) == 4
    assert "the queue is full: 16 texts wait, 20 may" in next(r for r in found if r.status_code == 429).json()["error"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"", {}, 400, "expected JSON"),
        (b'{"text": "good"', {}, 400, "expected JSON"),
        (b'{"text": NaN}', {}, 400, "NaN, which is no JSON"),
        (b'{"text": "good", "abstain": -Infinity}', {}, 400, "-Infinity, which is no JSON"),
        (b'{"text": "good", "text": "bad"}', {}, 400, "a key twice"),
        (b'{"text": "\xe9"}', {"content-type": "application/json; charset=latin-1"}, 400, "expected JSON"),
        (b"text=good", {"content-type": "application/x-www-form-urlencoded"}, 400, "expected JSON"),
        (b"<text>good</text>", {"content-type": "text/xml"}, 400, "expected JSON"),
        (b"\x1f\x8b", {"content-encoding": "gzip"}, 415, "expected JSON that is not compressed"),
        (b"9" * 1900, {}, 422, "expected {"),
        (b"9" * 3000, {}, 413, "expected at most 2000 bytes"),
    ],
)
def test_bodies_of_every_kind_get_a_reason(
    content: bytes, headers: dict[str, str], status: int, said: str, model: Predictor
) -> None:
    response = served(model, lambda client: client.post("/predict", content=content, headers=headers))
    assert response.status_code == status
    assert said in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/predict", 405), ("PUT", "/predict", 405), ("DELETE", "/health", 405), ("POST", "/metrics", 405),
     ("POST", "/predict/", 404), ("POST", "/", 404), ("GET", "/docs", 404), ("GET", "/../../etc/passwd", 404)],
)  # fmt: skip
def test_other_methods_and_paths_are_told_what_there_is(method: str, path: str, status: int, model: Predictor) -> None:
    response = served(model, lambda client: client.request(method, path, json={"text": "good"}))
    assert response.status_code == status
    assert response.json()["error"].startswith("expected POST /predict, GET /health, GET /metrics; got ")


def test_a_batch_that_fails_fails_alone(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Predictor.predict
    monkeypatch.setattr(
        Predictor, "predict", lambda self, texts, *more: 1 / 0 if "dull" in texts else answer(self, texts, *more)
    )

    async def calls(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(post(client, {"text": "dull"}), post(client, {"text": "good"}))

    failed, fine = served(model, calls)  # in one batch
    assert (failed.status_code, fine.status_code) == (500, 200)
    assert "ZeroDivisionError" in failed.json()["error"]


SLOW = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"
RUBBISH = (b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST /predict HTTP/1.1\r\nContent-Length: -4\r\n\r\n",
           b"A" * 100_000 + b"\r\n\r\n", b"\x16\x03\x01\x02\x00")  # fmt: skip


@contextmanager
def running(model: Predictor) -> Iterator[tuple[str, int]]:
    """A real server, and its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        app = new_app(model, LIMITS)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join(timeout=10)
    assert not thread.is_alive()


def test_slow_and_cut_connections_and_no_http_leave_the_others_alone(model: Predictor) -> None:
    """Forty clients hang in a request, forty leave in one, some speak no HTTP; good requests are answered."""
    with running(model) as address:

        def connect(content: bytes) -> socket.socket:
            client = socket.create_connection(address, timeout=10)
            client.sendall(content)
            return client

        hanging = [connect(SLOW) for _ in range(40)] + [connect(b"POST /pre") for _ in range(40)]
        for _ in range(40):
            connect(SLOW).close()
        for rubbish in RUBBISH:
            with connect(rubbish) as client, suppress(ConnectionError):
                assert client.recv(1 << 16)[:10] in (b"HTTP/1.1 4", b"")
        with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as good:
            assert [good.post("/predict", json={"text": text}).status_code for text in TEXTS[:5]] == [200] * 5
            said = hanging[0].makefile("rb").read(1 << 16).decode()  # until the server closes
            assert said.startswith("HTTP/1.1 408")
            assert "expected the whole request within 0.5 s, got 1 bytes" in said
            assert 'filbert_requests_total{status="500"}' not in good.get("/metrics").text
    for client in hanging:
        client.close()


def test_the_load_test_counts_what_is_answered_and_what_fails(model: Predictor) -> None:
    with running(model) as address:
        url = f"http://127.0.0.1:{address[1]}/predict"
        for texts, failed in ((TEXTS * 4, "0"), ([*TEXTS, "", "a" * 200], "2")):
            service, clients, *_, lost, _ = load(url, texts, 64)
            assert (service, clients, lost) == ("kd (model.onnx)", "64", failed)
        page = httpx.get(url.replace("predict", "metrics")).text
    assert f"filbert_texts_total {5 * len(TEXTS)}" in page
