"""A server as a contender: token ids are sent over HTTP and come back as a stream. The server here is a thread."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from selfdraft.core.errors import UserError
from selfdraft.models.reference import served
from selfdraft.models.reference.served import ServedEngine, server_address
from selfdraft.models.reference.stock import UNKNOWN_VALUES

MODELS = {"data": [{"id": "the-model"}, {"id": "an-adapter"}]}
PAUSE_S = 0.05


def piece(ids: list[int] | None, text: str = "a") -> bytes:
    """Return an event of the completions API, as vLLM sends it for return_token_ids."""
    choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice if ids is None else {**choice, 'token_ids': ids}]})}\n\n".encode()


DONE = b"data: [DONE]\n\n"
ANSWER = [
    piece([7], ""),
    piece([8, 9]),
    b": a comment\n\n",
    piece([2], ""),
    b'data: {"choices": [], "usage": {}}\n\n',
    DONE,
]


@dataclass
class Said:
    """What the server answers, and what it was asked.

    Attributes:
        models, completions: status and pieces of a body, each sent after a pause.
    """

    models: tuple[int, list[bytes]] = (200, [json.dumps(MODELS).encode()])
    completions: tuple[int, list[bytes]] = field(default_factory=lambda: (200, ANSWER))
    asked: list[dict] = field(default_factory=list)


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def address(said: Said) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _send(self, status: int, pieces: list[bytes]) -> None:
            self.send_response(status)
            self.end_headers()
            for each in pieces:
                time.sleep(PAUSE_S)
                self.wfile.write(each)
                self.wfile.flush()

        def do_GET(self) -> None:
            self._send(*(said.models if self.path == "/v1/models" else (404, [b"<html>no</html>"])))

        def do_POST(self) -> None:
            assert self.path == "/v1/completions" and self.headers["Content-Type"] == "application/json"
            said.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._send(*said.completions)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


def connected(address: str) -> ServedEngine:
    return ServedEngine(address, max_new_tokens=16, positions=64, eos=[2, 5])


def test_ids_are_sent_and_come_back_with_the_times_of_their_arrival(said: Said, address: str) -> None:
    engine = connected(f"{address}/")
    for prompt, room in (([1, 2, 3], 16), ([1] * 60, 4)):
        answer = engine.decode(prompt)
        assert (answer.output, answer.decoded, answer.failed) == ([7, 8, 9, 2], 3, "")
        assert answer.decode_s >= PAUSE_S and answer.decode_s + PAUSE_S <= answer.latency_s < 60
        asked = said.asked[-1]
        assert (asked["model"], asked["prompt"], asked["max_tokens"]) == ("the-model", prompt, room)
        assert (asked["temperature"], asked["repetition_penalty"], asked["stop_token_ids"]) == (0, 1.0, [2, 5])
        assert asked["stream"] and asked["return_token_ids"]
    assert said.asked[0]["cache_salt"] != said.asked[1]["cache_salt"]
    assert (engine.judged, engine.weights, engine.peak_memory_mb) == (False, UNKNOWN_VALUES, None)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, [piece(None), DONE]), "it answers without token ids: it must know return_token_ids, as newer vLLM does"),
        ((200, [b'{"choices": [{"text": "a"}]}\n']), "it does not stream its answer"),
        ((200, [piece([7])]), "its answer breaks off"),
        ((200, [DONE]), "its answer is empty"),
        ((200, [piece(list(range(17))), DONE]), "it answers with more than the 16 tokens that were asked for"),
        ((200, [b'data: {"error": {"message": "out of\\nmemory"}}\n\n']), "out of memory"),
        ((200, [b"data: {]\n\n"]), "its answer is no JSON ("),
        ((200, [b"data: []\n\n"]), "its answer is no JSON object"),
        ((200, [b'data: {"choices": [{"token_ids": ["7"]}]}\n\n']), "its token_ids are no token ids"),
        ((200, [b'data: {"choices": [7]}\n\n', DONE]), "its answer is empty"),
        ((400, [b'{"error": {"message": "too long"}}']), "it answers 400 to POST /v1/completions (too long)"),
        ((500, [b"<html>"]), "it answers 500 to POST /v1/completions"),
    ],
)
def test_an_answer_without_ids_has_its_reason_and_no_other_is_asked_for(
    answer: tuple[int, list[bytes]], reason: str, said: Said, address: str
) -> None:
    said.completions = answer
    engine = connected(address)
    for _ in range(2):
        given = engine.decode([1])
        assert given.output == [] and given.failed.startswith(reason) and "\n" not in given.failed
    assert len(said.asked) == 1


def test_a_server_that_falls_silent_is_given_up(said: Said, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = connected(address)
    monkeypatch.setattr(served, "ANSWER_S", PAUSE_S / 5)
    assert engine.decode([1]).failed == "it does not answer in time"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda address: address.removesuffix("v1"), r"it answers 404 to GET /models;"),
        (lambda address: "http://127.0.0.1:9/v1", r"Connection refused; give the address of a running server"),
    ],
)
def test_no_server_is_one_line(change: Callable[[str], str], reason: str, address: str) -> None:
    with pytest.raises(UserError, match=rf"^task\.server=http://.*: {reason}"):
        connected(change(address))


@pytest.mark.parametrize("models", [b"{}", b'{"data": []}', b'{"data": [{}]}', b'{"data": 7}', b"[]", b"no"])
def test_a_server_without_models_is_one_line(models: bytes, said: Said, address: str) -> None:
    said.models = (200, [models])
    with pytest.raises(UserError, match=r"^task\.server=http://.*: it(s answer is no JSON| names no model)"):
        connected(address)


def test_only_plain_addresses_of_http_are_taken() -> None:
    for right in ("http://localhost:8000/v1", "https://[::1]/v1", "http://a.b"):
        assert server_address(right).hostname
    for wrong in (
        "ftp://a/v1",
        "localhost:8000/v1",
        "/v1",
        "",
        "http://",
        "http://a:b/v1",
        "http://a\r\n/v1",
        "http://[/",
    ):
        with pytest.raises(UserError, match=r"^task\.server=.*: no address of http or https; give one such as http://"):
            server_address(wrong)
    for secret in ("http://me:secret@host/v1", "http://host/v1?key=secret", "http://host/v1#secret"):
        with pytest.raises(UserError, match=r"^task\.server: leave out user name, password, \? and #") as refused:
            server_address(secret)
        assert "secret" not in str(refused.value)
