"""The page from a local server, so that what it shows can be changed."""

from __future__ import annotations

import hmac
import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

HOST = "127.0.0.1"
_LONGEST = 4096  # characters of a request's address
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Answer = Callable[[dict[str, str]], dict[str, Any]]


class Server(ThreadingHTTPServer):
    """Answers on 127.0.0.1 to whoever has the token: GET `/TOKEN/` is the page, `/TOKEN/scene?...` another scene.

    Requests with another Host header are refused, so that no page of another origin that resolves to this address gets
    an answer. Nothing in a request names a file.
    """

    daemon_threads = True

    def __init__(self, page: str, answer: Answer, port: int = 0) -> None:
        """
        Args:
            page: what `/` shows.
            answer: a scene for the words of a request; its ValueErrors and the like are shown.
            port: 0 for any that is free.
        """
        super().__init__((HOST, port), _Handler)
        self.token = secrets.token_urlsafe(24)
        self.page, self.answer, self.one_at_a_time = page, answer, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/{self.token}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "dali-imagenet", ""
    timeout = 30  # seconds for a request to arrive

    def do_GET(self) -> None:
        hosts = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        if self.headers.get("Host", "") not in hosts or len(self.path) > _LONGEST:
            self._send(403, "text/plain", "refused")
            return
        asked = urlsplit(self.path)
        token, slash, what = asked.path.removeprefix("/").partition("/")
        known = hmac.compare_digest(token.encode(), self.server.token.encode())
        if not known or slash + what not in ("/", "/scene"):
            self._send(404, "text/plain", "not found")
        elif what == "":
            self._send(200, "text/html", self.server.page)
        else:
            self._scene({name: values[-1] for name, values in parse_qs(asked.query, keep_blank_values=True).items()})

    def _scene(self, words: dict[str, str]) -> None:
        try:
            with self.server.one_at_a_time:
                status, found = 200, self.server.answer(words)
        except Exception as error:  # whatever a field of a recipe makes of an image: the page says it
            status, found = 400, {"error": str(error) or type(error).__name__}
        self._send(status, "application/json", json.dumps(found))

    def _send(self, status: int, kind: str, text: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """The token would stand in it."""
