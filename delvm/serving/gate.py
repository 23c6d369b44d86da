"""The gate in front of page and endpoint: which paths exist, how much is read, how many wait.

Gradio serves far more than a page needs: a proxy, downloads from URLs, tools for development. What
is not listed here is not found, and requests are refused before their bodies are read.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from time import perf_counter
from typing import Any

from delvm.errors import UserError
from delvm.serving.cache import Cache
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
_PAGE_IMAGES = {f"{_API}/upload", f"{_API}/component_server"}  # where the page sends images to
_FORM_BYTES = 64 * 1024  # of what is in a body next to its image
_EVENT_BYTES = 256 * 1024  # of a body without images
_DRAIN_SECONDS = 2.0  # that a refused body may go on arriving
# JSON takes up to 21 times its size when it is parsed, if it is nothing but short lists. A question
# has three of these marks for each of up to 64 pairs, and base64 has none.
_MARKS, _MAX_MARKS = (b"[", b"{", b","), 1000


class _Refused(Exception):
    """The body of a request exceeds a limit."""


class Gate:
    """ASGI middleware.

    Attributes:
        waiting: requests to the endpoint that are computed or wait.
        uploads: requests of the page whose images are being read.
    """

    def __init__(self, app: App, limits: Limits, cache: Cache) -> None:
        """
        Args:
            app: what is behind the gate.
            limits: of bodies and queue.
            cache: where the page keeps uploaded files.
        """
        self.app, self.limits, self.cache = app, limits, cache
        self.waiting = self.uploads = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path = scope["path"]
        if not is_known(path):
            return await _refuse(send, 404, "not found")
        if scope.get("method") == "POST" and _header(scope, b"sec-fetch-site") == b"cross-site":
            return await _refuse(send, 403, "requests of other web sites are refused")
        is_large = path in _PAGE_IMAGES or path == "/v1/answer"
        limit = self.limits.max_upload_bytes + _FORM_BYTES if is_large else _EVENT_BYTES
        seconds = self.limits.max_body_seconds
        body = _Body(receive, limit, seconds, counts_marks=path == "/v1/answer")
        if _content_length(scope) > limit:
            return await _refuse(send, 413, too_large(limit), body)
        if path == f"{_API}/queue/join":
            return await self._join(scope, body, send)
        if path in _PAGE_IMAGES:
            return await self._upload(scope, body, send)
        if path != "/v1/answer":
            return await self._limited(scope, body, send)
        if self.waiting > self.limits.max_queue:
            return await _refuse(
                send, 503, f"the queue is full ({self.limits.max_queue} wait): try again later"
            )
        self.waiting += 1
        try:
            await self._limited(scope, body, send)
        finally:
            self.waiting -= 1

    async def _limited(self, scope: MutableMapping[str, Any], body: "_Body", send: Send) -> None:
        """Pass a request on, and refuse it once its body exceeds a limit."""
        started = False

        async def passed_on(message: Message) -> None:
            nonlocal started
            if body.refusal is None:  # else it is what the app makes of _Refused
                started = True
                await send(message)

        with suppress(_Refused):
            await self.app(scope, body.receive, passed_on)
        if body.refusal is not None and not started:
            await _refuse(send, *body.refusal, body)

    async def _upload(self, scope: MutableMapping[str, Any], body: "_Body", send: Send) -> None:
        """Pass a form with an image on, a few at once, while there is room on disk."""
        if not _header(scope, b"content-type").startswith(b"multipart/form-data"):
            return await _refuse(send, 400, "images are sent as multipart/form-data")
        if self.uploads > self.limits.max_queue:
            return await _refuse(send, 503, "too many files are being uploaded: try again later")
        self.uploads += 1
        try:
            if scope["path"] == f"{_API}/upload":
                await asyncio.to_thread(self.cache.check)
            await self._limited(scope, body, send)
        except UserError as error:
            await _refuse(send, 503, str(error))
        finally:
            self.uploads -= 1

    async def _join(self, scope: MutableMapping[str, Any], body: "_Body", send: Send) -> None:
        """Pass an event of the page on if all files that it names are uploads to the page.

        Gradio would copy other files of this machine, and download what a URL names.
        """
        data, more = b"", True
        while more:
            try:
                message = await body.receive()
            except _Refused:
                assert body.refusal is not None
                return await _refuse(send, *body.refusal, body)
            data += message.get("body", b"")
            more = message.get("more_body", False)
        try:
            event = json.loads(data)
            is_allowed = all(map(self._is_upload, named_paths(event)))
            # Written again, so that no other parser finds other paths in it.
            data = json.dumps(event).encode()
        except (ValueError, RecursionError):
            is_allowed = False
        if not is_allowed:
            return await _refuse(send, 400, "only files that were uploaded here can be used")
        parts = [{"type": "http.request", "body": data, "more_body": False}]

        async def again() -> Message:
            return parts.pop() if parts else await body.receive()

        await self.app(scope, again, send)

    def _is_upload(self, path: Any) -> bool:
        """Whether a path is below the cache."""
        if path is None:
            return True
        if not isinstance(path, str) or not os.path.isabs(path):
            return False
        return os.path.realpath(path).startswith(f"{os.path.realpath(self.cache.folder)}{os.sep}")


class _Body:
    """The body of a request, which is refused once it exceeds a limit, in whatever parts it comes.

    Attributes:
        refusal: status and words, once it is refused.
    """

    def __init__(
        self, receive: Receive, max_bytes: int, max_seconds: float, *, counts_marks: bool
    ) -> None:
        self.refusal: tuple[int, str] | None = None
        self._receive, self._max_bytes, self._max_seconds = receive, max_bytes, max_seconds
        self._counts_marks = counts_marks
        self._read = self._marks = 0
        self._seconds_left = max_seconds
        self._is_complete = False

    async def receive(self) -> Message:
        """The next message of the client.

        Raises:
            _Refused: the body is too large, has too many values, or does not arrive in time.
        """
        if self._is_complete:  # then the app waits for the client to leave
            return await self._receive()
        start = perf_counter()
        try:
            async with asyncio.timeout(self._seconds_left):
                message = await self._receive()
        except TimeoutError:
            raise self._refused(
                408,
                f"the request did not arrive within {self._max_seconds:g} s: send "
                "smaller images, or set max_body_seconds when serving",
            ) from None
        self._seconds_left -= perf_counter() - start
        chunk = message.get("body", b"")
        self._is_complete = not message.get("more_body", False)
        self._read += len(chunk)
        if self._read > self._max_bytes:
            raise self._refused(413, too_large(self._max_bytes))
        if self._counts_marks:
            self._marks += sum(map(chunk.count, _MARKS))
            if self._marks > _MAX_MARKS:
                raise self._refused(422, "the request has another form: see docs/serve.md")
        return message

    async def drain(self) -> None:
        """Read on for a while, and drop it.

        Closing a socket with bytes unread resets the connection, and the client can lose the
        answer that it has been sent.
        """
        more = not self._is_complete
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while more:
                    more = (await self._receive()).get("more_body", False)

    def _refused(self, status: int, detail: str) -> _Refused:
        self.refusal = status, detail
        return _Refused()


def too_large(max_bytes: int) -> str:
    """The message about a body that is."""
    limit = f"{max_bytes // MIB} MiB" if max_bytes >= MIB else f"{max_bytes // 1024} KiB"
    return f"the request is too large: the limit is {limit}"


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


def _header(scope: MutableMapping[str, Any], name: bytes) -> bytes:
    value: bytes = dict(scope["headers"]).get(name, b"")
    return value


def _content_length(scope: MutableMapping[str, Any]) -> int:
    value = _header(scope, b"content-length")
    return int(value) if value.isdigit() else 0


async def _refuse(send: Send, status: int, detail: str, body: _Body | None = None) -> None:
    """Answer with an error; with a body, the rest of it is dropped and the connection closed."""
    data = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    if status == 503:
        headers.append((b"retry-after", b"2"))
    if body is not None:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data, "more_body": body is not None})
    if body is not None:
        await body.drain()
        await send({"type": "http.response.body", "body": b""})
