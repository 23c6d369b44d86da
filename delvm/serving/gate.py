"""The gate in front of page and endpoint: which paths exist, how much is read, how many wait.

Gradio serves far more than a page needs: a proxy, downloads from URLs, tools for development. What
is not listed here is not found, and requests are refused before their bodies are read.
"""

import json
import os
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from delvm.serving.limits import MIB, Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_API = "/gradio_api"
_EXACT = {
    "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt",
    "/v1/students", "/v1/answer", "/v1/openapi.json",
    *(f"{_API}/{each}" for each in (
        "queue/join", "queue/data", "upload", "upload_progress", "component_server", "cancel",
        "reset", "startup-events", "info", "app_id",
    )),
}  # fmt: skip
_BELOW = ("/assets/", "/static/", "/svelte/", f"{_API}/heartbeat/", f"{_API}/file=")
_LARGE = {"/v1/answer", f"{_API}/upload", f"{_API}/component_server"}  # bodies with images
_FORM_BYTES = 64 * 1024  # of what is in a body next to its image


class _TooLarge(Exception):
    """The body of a request exceeds its limit."""


class Gate:
    """ASGI middleware.

    Attributes:
        waiting: requests to the endpoint that are computed or wait.
    """

    def __init__(self, app: App, limits: Limits, cache: Path) -> None:
        """
        Args:
            app: what is behind the gate.
            limits: of bodies, queue and cache.
            cache: directory in which the page keeps uploaded files.
        """
        self.app, self.limits, self.cache, self.waiting = app, limits, cache, 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path = scope["path"]
        if not is_known(path):
            return await _refuse(send, 404, "not found")
        limit = self.limits.max_upload_bytes + _FORM_BYTES if path in _LARGE else MIB
        if _content_length(scope) > limit:
            return await _refuse(send, 413, self._too_large())
        if path == f"{_API}/upload" and self._cache_is_full():
            return await _refuse(send, 503, "too many files were uploaded: try again in an hour")
        if path == f"{_API}/queue/join":
            return await self._join(scope, receive, send, limit)
        if path != "/v1/answer":
            return await self._limited(scope, receive, send, limit)
        if self.waiting > self.limits.max_queue:
            return await _refuse(
                send, 503, f"the queue is full ({self.limits.max_queue} wait): try again later"
            )
        self.waiting += 1
        try:
            await self._limited(scope, receive, send, limit)
        finally:
            self.waiting -= 1

    async def _limited(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, limit: int
    ) -> None:
        """Pass a request on, and refuse it once its body exceeds the limit, in whatever parts."""
        read, started = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise _TooLarge
            return message

        async def passed_on(message: Message) -> None:
            nonlocal started
            if read <= limit:  # else it is what the app makes of _TooLarge
                started = True
                await send(message)

        with suppress(_TooLarge):
            await self.app(scope, counted, passed_on)
        if read > limit and not started:
            await _refuse(send, 413, self._too_large())

    async def _join(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, limit: int
    ) -> None:
        """Pass an event of the page on if all files that it names are uploads to the page.

        Gradio would copy other files of this machine, and download what a URL names.
        """
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                return await _refuse(send, 413, self._too_large())
        try:
            is_allowed = all(map(self._is_upload, named_paths(json.loads(body))))
        except (ValueError, RecursionError):
            is_allowed = False
        if not is_allowed:
            return await _refuse(send, 400, "only files that were uploaded here can be used")
        parts = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return parts.pop() if parts else await receive()

        await self.app(scope, again, send)

    def _is_upload(self, path: Any) -> bool:
        """Whether a path is below the cache."""
        if path is None:
            return True
        if not isinstance(path, str) or not os.path.isabs(path):
            return False
        return os.path.realpath(path).startswith(f"{os.path.realpath(self.cache)}{os.sep}")

    def _too_large(self) -> str:
        return f"the request is too large: the limit is {self.limits.max_upload_mb} MiB"

    def _cache_is_full(self) -> bool:
        total = 0
        for folder, _, names in os.walk(self.cache):
            for name in names:
                try:
                    total += os.lstat(os.path.join(folder, name)).st_size
                except FileNotFoundError:  # deleted in between
                    continue
        return total > self.limits.max_cache_mb * MIB


def is_known(path: str) -> bool:
    """Whether page or endpoint need a path; URLs as files are not among them."""
    if path in _EXACT:
        return True
    return path.startswith(_BELOW) and "://" not in path and ".." not in path.split("/")


def named_paths(value: Any) -> Iterator[Any]:
    """Everything that is called a path in a value of JSON."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from named_paths(each)


def _content_length(scope: MutableMapping[str, Any]) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status == 503:
        headers.append((b"retry-after", b"2"))
    if status == 413:  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
