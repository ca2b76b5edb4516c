"""Time a running server in task=compare: vLLM, or another one with its completions API. Token ids go over HTTP."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from selfdraft.core.errors import UserError
from selfdraft.core.json_text import MalformedJSON, parse_json
from selfdraft.core.messages import one_line
from selfdraft.models.reference.stock import UNKNOWN_VALUES, StockGeneration

SERVED = "vllm"  # the contender's name
CONNECT_S, ANSWER_S = (
    10.0,
    300.0,
)  # seconds to wait for a connection, and then for each piece of an answer
LONGEST_LINE = 1_000_000  # bytes
REASON = 200  # characters of a server's own message that are shown


class _Failed(Exception):
    """A request that has no answer; the message is the reason."""


def server_address(text: str) -> SplitResult:
    """Return the parts of a server's address.

    Raises:
        UserError: it is no address of http or https, or it holds a password, which would get into result files.
    """
    right = "give one such as http://localhost:8000/v1"
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        usable = False
    if not usable or any(ord(letter) <= 32 or ord(letter) > 126 for letter in text):
        raise UserError(f"task.server={one_line(text)[:80]}: no address of http or https; {right}")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError(f"task.server: leave out user name, password, ? and #; {right}")
    return parts


class ServedEngine:
    """A server that decodes greedily and returns token ids; one request at a time is sent.

    The server does not time itself. Seconds are counted until pieces of the answer arrive here, so they include the
    network.

    Attributes:
        weights: `UNKNOWN_VALUES`. judged: False, since nobody knows which values and dtype the server computes with.
        failed: why it answers no more; empty while it does.
        load_s: 0, because it had loaded its model before. peak_memory_mb: None, because it does not say.
    """

    weights, judged = UNKNOWN_VALUES, False
    load_s: float | None = 0.0
    peak_memory_mb: float | None = None

    def __init__(self, server: str, *, max_new_tokens: int, positions: int, eos: Sequence[int]) -> None:
        """Ask the server which model it serves; the first one that it names is used.

        Args:
            server: its address, with the version, such as ``http://localhost:8000/v1``.
            positions: tokens of a prompt and its answer, at most. eos: ids that end an answer.

        Raises:
            UserError: the address cannot be used, or no such server answers there.
        """
        self.address, self.failed = server_address(server), ""
        self.max_new_tokens, self.positions, self.eos = max_new_tokens, positions, sorted(eos)
        try:
            self.model = self._served_model()
        except (_Failed, OSError, http.client.HTTPException) as error:
            raise UserError(
                f"task.server={server}: {_reason(error)}; give the address of a running server, e.g. of vllm serve"
            ) from None

    @property
    def _path(self) -> str:
        return self.address.path.rstrip("/")

    def decode(self, prompt: Sequence[int]) -> StockGeneration:
        """Answer one prompt; with nothing once a request has failed, for the reason in `failed`."""
        if not self.failed:
            try:
                return self._decoded(prompt)
            except (_Failed, OSError, http.client.HTTPException) as error:
                self.failed = _reason(error)
        return StockGeneration([], 0, 0.0, 0.0, self.failed)

    def _served_model(self) -> str:
        connection = self._connected()
        try:
            found = _read_json(_response(connection, "GET", f"{self._path}/models", None).read(LONGEST_LINE))
            return str(found["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise _Failed("it names no model") from None
        finally:
            connection.close()

    def _decoded(self, prompt: Sequence[int]) -> StockGeneration:
        most = min(self.max_new_tokens, self.positions - len(prompt))
        asked = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": most,
            "temperature": 0,
            "repetition_penalty": 1.0,  # the checkpoint may have another one
            "stop_token_ids": self.eos,
            "stream": True,
            "return_token_ids": True,
            "cache_salt": uuid.uuid4().hex,  # nothing of an earlier request is used again
        }
        output: list[int] = []
        first_s = last_s = 0.0
        first_tokens = 0
        connection = self._connected()
        try:
            begun = time.perf_counter()
            response = _response(connection, "POST", f"{self._path}/completions", json.dumps(asked))
            for ids in _pieces(response):
                last_s = time.perf_counter() - begun
                if not output:
                    first_s, first_tokens = last_s, len(ids)
                output += ids
                if len(output) > most:
                    raise _Failed(f"it answers with more than the {most} tokens that were asked for")
        finally:
            connection.close()
        if not output:
            raise _Failed("its answer is empty")
        return StockGeneration(output, len(output) - first_tokens, last_s - first_s, last_s)

    def _connected(self) -> http.client.HTTPConnection:
        """Return a new connection; connecting is not part of an answer's time."""
        kind = http.client.HTTPSConnection if self.address.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(self.address.hostname), self.address.port, timeout=CONNECT_S)
        connection.connect()
        connection.sock.settimeout(ANSWER_S)
        return connection


def _response(
    connection: http.client.HTTPConnection, method: str, path: str, body: str | None
) -> http.client.HTTPResponse:
    """Send a request and return its response; the body has not been read yet."""
    connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
    response = connection.getresponse()
    if response.status != 200:
        said = _own_message(response.read(LONGEST_LINE).decode("utf-8", "replace"))
        raise _Failed(f"it answers {response.status} to {method} {path}{f' ({said})' if said else ''}")
    return response


def _pieces(response: http.client.HTTPResponse) -> Iterator[list[int]]:
    """Yield the token ids of each piece of a streamed answer as it arrives; pieces without a token are left out."""
    while line := response.readline(LONGEST_LINE):
        kind, _, text = line.decode("utf-8", "replace").strip().partition(":")
        if kind != "data":
            if kind.startswith("{"):
                raise _Failed("it does not stream its answer")
            continue
        if text.strip() == "[DONE]":
            return
        piece = _read_json(text.encode())
        if "error" in piece:
            raise _Failed(_own_message(text) or "it answers with an error")
        choices = piece.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            ids = choice.get("token_ids") if isinstance(choice, dict) else None
            if ids is None and isinstance(choice, dict) and choice.get("text"):
                raise _Failed("it answers without token ids: it must know return_token_ids, as newer vLLM does")
            if not isinstance(ids or [], list) or not all(
                type(each) is int and 0 <= each < 2**31 for each in ids or []
            ):
                raise _Failed("its token_ids are no token ids")
            if ids:
                yield ids
    raise _Failed("its answer breaks off")


def _token_ids(choice: object) -> list[int]:
    """Return the token ids of a piece of an answer; none if it has neither ids nor text."""
    ids = choice.get("token_ids") if isinstance(choice, dict) else None
    if ids is None:
        if isinstance(choice, dict) and choice.get("text"):
            raise _Failed("it answers without token ids: it must know return_token_ids, as newer vLLM does")
        return []
    if not isinstance(ids, list) or not all(type(each) is int and 0 <= each < 2**31 for each in ids):
        raise _Failed("its token_ids are no token ids")
    return ids


def _read_json(text: bytes) -> dict[str, Any]:
    try:
        found = parse_json(text.decode("utf-8", "replace"))
    except MalformedJSON as error:
        raise _Failed(f"its answer is no JSON ({error})") from None
    if not isinstance(found, dict):
        raise _Failed("its answer is no JSON object")
    return found


def _own_message(text: str) -> str:
    """Return what a server says is wrong, shortened; empty if it says nothing."""
    try:
        found = parse_json(text)
    except MalformedJSON:
        return ""
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return one_line(found)[:REASON] if isinstance(found, str) else ""


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    said = error.strerror if isinstance(error, OSError) else str(error)
    return one_line(said or f"{type(error).__name__} {error}")[:REASON]
