"""A real HTTP server for tests: it answers as a scripted language model, or passes on to a real one, with faults.

`Proxy` speaks the chat part of OpenAI's API on a free port of this machine. Every request is one `Seen`: what was
asked (a digest of its messages), which fault it met, and whether a whole answer left. `Reader` is a language model of
a few lines: it reads a card's examples, names the words on which the part is active, and judges by such a description.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Body = dict[str, Any]
FAULTS = (
    "429", "429 date", "429 long", "429 quota", "500", "503", "cut", "not json", "not a completion", "nonsense", "slow",
    "hold", "401", "too long",
)  # fmt: skip


@dataclass
class Seen:
    """One request as the server saw it."""

    asked: str
    body: Body
    headers: dict[str, str]
    fault: str
    answered: bool = False


@dataclass
class Proxy:
    """The server. A context manager; `url` is the base_url for clients.

    model     answers a request with its words, or with a whole completion
    upstream  base_url of a real server to which requests without fault are passed on instead
    script    fault of the first, second, ... request; "" for none, and none after its end
    refuse    parameters that the endpoint does not know: 400, as real ones say it
    known     names of its models; others are refused
    """

    model: Callable[[Body], str | Body] | None = None
    upstream: str = ""
    script: Sequence[str] = ()
    refuse: Sequence[str] = ()
    known: Sequence[str] = ("stub",)
    pause: float = 0.0  # seconds before every answer
    slow: float = 3.0  # seconds that a slow answer takes
    seen: list[Seen] = field(default_factory=list)
    most_at_once: int = 0

    def __enter__(self) -> Proxy:
        self._lock, self._let_go, self._now = threading.Lock(), threading.Event(), 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                data = json.dumps({"object": "list", "data": [{"id": m, "object": "model"} for m in proxy.known]})
                _send(self, 200, data.encode())

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = self.rfile.read(length)
                if len(body) < length:  # the client was killed while it asked
                    self.close_connection = True
                    return
                try:
                    proxy._handle(self, body)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def held(self) -> int:
        """Requests that were never answered and never will be."""
        return sum(s.fault == "hold" for s in self.seen)

    def answered(self) -> list[str]:
        """What was answered in full, once per answer."""
        return [s.asked for s in self.seen if s.answered]

    def _handle(self, handler: BaseHTTPRequestHandler, raw: bytes) -> None:
        body = json.loads(raw)
        asked = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        with self._lock:
            place = len(self.seen)
            fault = self.script[place] if place < len(self.script) else ""
            assert fault in ("", *FAULTS)
            seen = Seen(asked, body, {k.lower(): v for k, v in handler.headers.items()}, fault)
            self.seen.append(seen)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            time.sleep(self.pause)
            self._answer(handler, body, raw, seen)
        finally:
            with self._lock:
                self._now -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, body: Body, raw: bytes, seen: Seen) -> None:
        fault, key = seen.fault, seen.headers.get("authorization", "")
        if fault == "hold":
            self._let_go.wait()
            return
        if fault == "slow":
            time.sleep(self.slow)
        if fault.startswith("429"):
            after = {"429": "0.3", "429 date": formatdate(time.time() + 1, usegmt=True), "429 long": "7200"}
            head = {"retry-after": after[fault]} if fault in after else {}
            code = "insufficient_quota" if fault == "429 quota" else "rate_limit"
            return _send(handler, 429, _error(f"slow down, {key}", code), head)
        if fault in ("500", "503", "401"):
            return _send(handler, int(fault), _error(f"something is wrong with {key}", "x"))
        if fault == "too long":
            return _send(handler, 400, _error("this model's maximum context length is 512 tokens", "context_length"))
        if body["model"] not in self.known:
            return _send(handler, 404, _error(f"The model `{body['model']}` does not exist", "model_not_found"))
        for name in self.refuse:
            if name in body:
                return _send(handler, 400, _error(f"Unsupported parameter: '{name}'", "unsupported_parameter"))
        data = self._data(body, raw, seen)
        if fault == "cut":
            handler.send_response(200)
            handler.send_header("content-length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2])
            handler.wfile.flush()
            handler.close_connection = True
            return handler.connection.close()
        _send(handler, 200, data)
        seen.answered = fault in ("", "nonsense")

    def _data(self, body: Body, raw: bytes, seen: Seen) -> bytes:
        if seen.fault == "not json":
            return b"<html>502 Bad Gateway</html>"
        if seen.fault == "not a completion":
            return b'{"object": "list", "data": []}'
        if seen.fault == "nonsense":
            return _completion(f"I would rather not say, {seen.headers.get('authorization', '')}.", body)
        if self.upstream:
            url = f"{self.upstream}/chat/completions"
            request = urllib.request.Request(url, raw, {"content-type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.read()
        assert self.model is not None
        said = self.model(body)
        return _completion(said, body) if isinstance(said, str) else json.dumps(said).encode()


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that were killed."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _send(handler: BaseHTTPRequestHandler, status: int, data: bytes, head: dict[str, str] | None = None) -> None:
    handler.send_response(status)
    for name, value in {"content-type": "application/json", "content-length": str(len(data)), **(head or {})}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)
    handler.wfile.flush()


def _error(message: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "code": code, "param": None}}).encode()


def _completion(words: str, body: Body) -> bytes:
    said = "".join(m["content"] for m in body["messages"])
    return json.dumps(
        {
            "object": "chat.completion", "model": body["model"],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": words}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(said.split()), "completion_tokens": len(words.split())},
        }
    ).encode()  # fmt: skip


# -- a language model of a few lines -----------------------------------------------------------------------------------


class Reader:
    """Explains by naming the words with the largest activity on the card; judges by the words that are named."""

    def __call__(self, body: Body) -> str:
        system, user = body["messages"][0]["content"], body["messages"][1]["content"]
        if "<card>" in user:
            return self.explain(json.loads(user.split("<card>\n")[1].split("\n</card>")[0]))
        named = re.findall(r"'(\w+)'", user.split("<description>\n")[1].split("\n</description>")[0])
        if "Examples:\n\n" in user:
            return json.dumps({n: self.levels(text, named) for n, text in self.parts(user, "Examples:\n\n", "e")})
        marked = "⟪" in system
        if "q1" not in user:
            return str(int(self.holds(user.split("Snippet:\n")[1].split("\n\n1 or 0?")[0], named, marked)))
        parts = self.parts(user, "Snippets:\n\n", "q")
        return "Let me see.\n```json\n" + json.dumps({n: int(self.holds(t, named, marked)) for n, t in parts}) + "\n```"

    def explain(self, card: dict[str, Any]) -> str:
        best = max(a for e in card["examples"] for a in e["activity"])
        words = sorted(
            {t.strip() for e in card["examples"] for t, a in zip(e["tokens"], e["activity"], strict=True) if a == best}
        )
        said = " or ".join(f"'{w}'" for w in words)
        return json.dumps(
            {
                "reads": f"It reads {said}.", "computes": "It tells it from other words.", "writes": "A constant.",
                "trigger": f"Active on the token {said}.", "effect_if_removed": f"Examples with {said} get worse.",
                "counter_examples": ["none"], "confidence": "90%", "mood": "good",
            }
        )  # fmt: skip

    @staticmethod
    def parts(user: str, after: str, letter: str) -> list[tuple[str, str]]:
        found = re.split(rf"(?:^|\n\n)({letter}\d+):\n", user.split(after)[1])
        return list(zip(found[1::2], found[2::2], strict=True))

    @staticmethod
    def holds(text: str, named: list[str], marked: bool) -> bool:
        shown = re.sub(r"^\[before: .*?\]\n", "", text, flags=re.DOTALL)
        if marked:
            spans = re.findall("⟪(.*?)⟫", shown, flags=re.DOTALL)
            return bool(spans) and all(w in named for s in spans for w in s.split())
        return any(w in named for w in shown.split())

    @staticmethod
    def levels(text: str, named: list[str]) -> list[dict[str, int]]:
        tokens = re.findall(r"(\d+):(\"(?:[^\"\\]|\\.)*\")", text)
        return [{"at": int(i), "level": 10} for i, word in tokens if json.loads(word).strip() in named]
