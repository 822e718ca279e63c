"""An HTTP proxy that misbehaves on purpose: it stands between a store's client and a real server on loopback.

A seeded share of the requests is answered 500, 503 SlowDown or 429, reset, left hanging, cut short in either direction, or
carried out without an answer. `refuse(n)` is a store that is away for the next n requests, `away()` for some time.
"""

import http.client
import http.server
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
ANSWERS = {
    "error": (500, b"<Error><Code>InternalError</Code></Error>"),
    "slow_down": (503, SLOW_DOWN),
    "too_many": (429, b"<Error><Code>TooManyRequests</Code></Error>"),
}
# reset: before anything; hang: no answer; cut_request: amid the body that came; swallow: done, but nobody is told;
# cut: half of the answer.
FAULTS = (*ANSWERS, "reset", "hang", "cut_request", "swallow", "cut")


class FaultProxy:
    """A running proxy; use as a context. `faults` and `requests` count what it did, by kind and by method."""

    def __init__(self, upstream: str, share: float, seed: int = 0, kinds: Sequence[str] = FAULTS) -> None:
        self.upstream, self.share, self.kinds = upstream.removeprefix("http://"), share, tuple(kinds)
        self.faults: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.stopping = threading.Event()
        self._random, self._lock, self._refusals = random.Random(seed), threading.Lock(), 0
        self._away = False
        self._planned: list[str | None] = []
        self.handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), self.handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def refuse(self, count: int) -> None:
        """Reset the next `count` connections."""
        with self._lock:
            self._refusals = count

    @contextmanager
    def away(self) -> Iterator[None]:
        """Reset every connection until the block ends."""
        self._away = True
        try:
            yield
        finally:
            self._away = False

    def plan(self, *faults: str | None) -> None:
        """Say what happens to the next requests, in order; None is no fault."""
        with self._lock:
            self._planned = list(faults)

    def draw(self, method: str) -> str | None:
        """Decide what happens to one request."""
        with self._lock:
            self.requests[method] += 1
            fault: str | None
            if self._away:
                fault = "away"
            elif self._refusals:
                self._refusals -= 1
                fault = "reset"
            elif self._planned:
                fault = self._planned.pop(0)
            else:
                fault = self._random.choice(self.kinds) if self._random.random() < self.share else None
            if fault:
                self.faults[fault] += 1
            return fault

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that gave up are what this is about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def handle_one(self) -> None:
        fault, length = self.proxy.draw(self.command), int(self.headers.get("content-length") or 0)
        if fault == "cut_request":
            self.rfile.read(length // 2)
        if fault in ("reset", "away", "cut_request"):
            return self._reset()
        body = self.rfile.read(length)
        if fault == "hang":
            self.proxy.stopping.wait(30)  # the client gives up first
            return self._reset()
        if fault in ANSWERS:
            return self._answer(ANSWERS[fault][0], {}, ANSWERS[fault][1])
        status, headers, answer = self._forward(body)
        if fault == "swallow" or (fault == "cut" and not answer):
            return self._reset()
        return self._answer(status, headers, answer, len(answer) // 2 if fault == "cut" else len(answer))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body or None, dict(self.headers))
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, headers, response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, sent_bytes: int | None = None) -> None:
        self.send_response_only(status)
        if self.command != "HEAD":
            headers = headers | {"content-length": str(len(body))}
        for name, value in headers.items():
            if name not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent_bytes])
        if sent_bytes is not None and sent_bytes < len(body):
            self.wfile.flush()
            self.close_connection = True

    def _reset(self) -> None:
        """Close with RST: the kernel's way of a machine that went away."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""
