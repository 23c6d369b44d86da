"""The gate: unknown paths, large bodies and long queues are refused before anything is read."""

import asyncio
import json
import threading
from pathlib import Path

import pytest

from delvm.serving import gate
from delvm.serving.cache import Cache
from delvm.serving.gate import Gate, is_known
from delvm.serving.limits import MIB, Limits

LIMITS = Limits(max_upload_mb=1, max_queue=2, max_cache_mb=1)


class Client:
    """Sends requests through a gate; the app behind it reads the body and waits for `free`."""

    def __init__(self, folder: Path, limits: Limits = LIMITS) -> None:
        self.read: list[int] = []
        self.free = asyncio.Event()
        self.gate = Gate(self.app, limits, Cache(folder, limits))

    async def app(self, scope, receive, send):
        read, more = 0, True
        while more:
            message = await receive()
            read += len(message["body"])
            self.last = message["body"]
            more = message["more_body"]
        self.read.append(read)
        await self.free.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def send(self, path, chunks=(b"",), headers=(), is_complete=True):
        """Status and words of the answer; an incomplete body ends without its last part."""
        sent, parts = [], list(chunks)

        async def receive():
            if not parts:
                await asyncio.Event().wait()
            chunk = parts.pop(0)
            more = bool(parts) or not is_complete
            return {"type": "http.request", "body": chunk, "more_body": more}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
        await self.gate(scope, receive, send)
        self.unread = len(parts)
        return sent[0]["status"], json.loads(sent[1]["body"]).get("detail", "")


def run(test):
    return asyncio.run(asyncio.wait_for(test, 10))


@pytest.fixture(autouse=True)
def brief_drain(monkeypatch):
    monkeypatch.setattr(gate, "_DRAIN_SECONDS", 0.1)


FORM = [(b"content-type", b"multipart/form-data; boundary=x")]
PAGE_IMAGES = ("/gradio_api/upload", "/gradio_api/component_server")


def test_what_a_page_does_not_need_is_not_found(tmp_path):
    for path in ("/docs", "/monitoring", "/gradio_api/proxy=http://a.b", "/gradio_api/vibe-edit"):
        assert not is_known(path)
        assert run(Client(tmp_path).send(path)) == (404, "not found")
    for path in ("/gradio_api/file=http://a.b/c.png", "/gradio_api/file=/a/../b", "/static/../a"):
        assert not is_known(path)
    for path in ("/", "/assets/index.js", "/gradio_api/file=/a/b.png", "/v1/answer"):
        assert is_known(path)


def test_a_large_body_is_refused_by_its_length_or_as_it_is_read(tmp_path):
    async def test():
        client = Client(tmp_path)
        client.free.set()
        length = [(b"content-length", b"%d" % (2 * MIB))]
        status, detail = await client.send("/v1/answer", headers=length)
        assert status == 413 and detail == "the request is too large: the limit is 1 MiB"
        assert not client.read
        chunks = [bytes(MIB // 2)] * 5  # of a client that states no length
        assert (await client.send("/v1/answer", chunks))[0] == 413
        assert not client.read and client.gate.waiting == 0
        assert await client.send("/v1/answer", chunks[:2]) == (200, "")
        assert client.read == [MIB]

    run(test())


def test_a_refused_body_is_read_to_its_end(tmp_path):
    """A socket that is closed with bytes unread is reset, and the answer may be lost."""

    async def test():
        client = Client(tmp_path)
        length = [(b"content-length", b"%d" % (5 * MIB))]
        for headers in (length, []):
            assert (await client.send("/v1/answer", [bytes(MIB)] * 5, headers))[0] == 413
            assert client.unread == 0

    run(test())


def test_an_error_of_the_app_about_a_large_body_becomes_413(tmp_path):
    async def catches(scope, receive, send):
        try:
            while True:
                await receive()
        except Exception:  # as FastAPI does
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

    async def test():
        client = Client(tmp_path)
        client.gate.app = catches
        assert (await client.send("/v1/answer", [bytes(MIB)] * 3))[0] == 413

    run(test())


def test_more_than_the_queue_holds_are_refused(tmp_path):
    async def test():
        client = Client(tmp_path)
        tasks = [asyncio.create_task(client.send("/v1/answer")) for _ in range(10)]
        await asyncio.sleep(0)
        done = [await each for each in tasks[3:]]  # one is computed, two wait
        assert {status for status, _ in done} == {503}
        assert done[0][1] == "the queue is full (2 wait): try again later"
        client.free.set()
        assert [(await each)[0] for each in tasks[:3]] == [200] * 3
        assert client.gate.waiting == 0
        assert (await client.send("/v1/answer"))[0] == 200

    run(test())


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (2 * MIB, 503)])
def test_uploads_are_refused_when_the_cache_is_full(tmp_path, size, status):
    (tmp_path / "session").mkdir()
    (tmp_path / "session/a.png").write_bytes(bytes(size))

    async def test():
        client = Client(tmp_path)
        client.free.set()
        assert (await client.send("/gradio_api/upload", headers=FORM))[0] == status

    run(test())


def test_other_requests_need_not_wait_until_the_cache_is_measured(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(Cache, "check", lambda _: threads.append(threading.current_thread()))

    async def test():
        client = Client(tmp_path)
        client.free.set()
        assert (await client.send("/gradio_api/upload", headers=FORM))[0] == 200

    run(test())
    assert threads and threads[0] is not threading.main_thread()


def test_events_may_name_no_file_but_uploads(tmp_path):
    inside = str(tmp_path / "session/a.png")
    (tmp_path / "link").symlink_to("/etc")
    event = {"data": [None, {"path": inside, "meta": {}}, {"composite": None}], "fn_index": 1}

    async def test():
        client = Client(tmp_path)
        client.free.set()
        join = "/gradio_api/queue/join"
        body = json.dumps(event).encode()
        assert await client.send(join, [body[:20], body[20:]]) == (200, "")
        assert client.read == [len(body)]  # it is passed on as it came
        for path in ("/etc/passwd", f"{tmp_path}/../a", f"{tmp_path}/link/passwd", "http://a.b/c"):
            for value in ({"path": path}, {"composite": {"path": path}}, [[{"path": path}]]):
                body = json.dumps({"data": [value]}).encode()
                status, detail = await client.send(join, [body])
                assert (status, detail) == (400, "only files that were uploaded here can be used")
        assert (await client.send(join, [b"{"]))[0] == 400
        assert (await client.send(join, [bytes(MIB), b"1"]))[0] == 413
        assert len(client.read) == 1

    run(test())


@pytest.mark.parametrize("path", ["/v1/answer", *PAGE_IMAGES, "/gradio_api/queue/join"])
@pytest.mark.parametrize("chunks", [(), (b"{", b"}")])
def test_a_body_that_does_not_arrive_in_time_is_refused(tmp_path, path, chunks):
    async def test():
        client = Client(tmp_path, Limits(max_queue=2, max_body_seconds=0.05))
        status, words = await client.send(path, chunks, FORM, is_complete=False)
        assert status == 408 and "the request did not arrive within 0.05 s" in words
        assert client.gate.waiting == client.gate.uploads == 0 and not client.read

    run(test())


def test_an_answer_may_take_longer_than_its_request(tmp_path):
    async def test():
        client = Client(tmp_path, Limits(max_body_seconds=0.05))
        asyncio.get_running_loop().call_later(0.2, client.free.set)
        assert (await client.send("/v1/answer", [b"{", b"}"]))[0] == 200

    run(test())


def test_json_of_many_short_lists_is_refused_before_it_is_parsed(tmp_path):
    """It would take 21 times its size."""

    async def test():
        client = Client(tmp_path)
        client.free.set()
        chunks = [b'{"pairs": [', b"[]," * 10_000, b"[]]}"]
        status, words = await client.send("/v1/answer", chunks)
        assert status == 422 and "the request has another form" in words and not client.read
        pair = b'{"input": "iVBORw0KGgo=", "target": "iVBORw0KGgo="}'
        question = b'{"pairs": [%s], "query": "iVBORw0KGgo="}' % b", ".join([pair] * 64)
        assert (await client.send("/v1/answer", [question]))[0] == 200

    run(test())


@pytest.mark.parametrize("path", PAGE_IMAGES)
def test_images_of_the_page_are_read_a_few_at_once_and_as_forms(tmp_path, path):
    async def test():
        client = Client(tmp_path)
        status, words = await client.send(path, [b"[]"], [(b"content-type", b"application/json")])
        assert status == 400 and words == "images are sent as multipart/form-data"
        tasks = [asyncio.create_task(client.send(path, headers=FORM)) for _ in range(10)]
        await asyncio.sleep(0)
        done = [await each for each in tasks[3:]]
        assert {*done} == {(503, "too many files are being uploaded: try again later")}
        client.free.set()
        assert [(await each)[0] for each in tasks[:3]] == [200] * 3 and client.gate.uploads == 0

    run(test())


def test_an_event_of_the_page_is_small(tmp_path):
    async def test():
        length = [(b"content-length", b"%d" % MIB)]
        status, words = await Client(tmp_path).send("/gradio_api/queue/join", headers=length)
        assert status == 413 and words == "the request is too large: the limit is 256 KiB"

    run(test())


def test_requests_that_other_web_sites_make_in_a_browser_are_refused(tmp_path):
    async def test():
        client = Client(tmp_path)
        client.free.set()
        for path in ("/v1/answer", *PAGE_IMAGES, "/gradio_api/queue/join"):
            site = (b"sec-fetch-site", b"cross-site")
            status, words = await client.send(path, [b"{}"], [*FORM, site])
            assert status == 403 and words == "requests of other web sites are refused"
        for site in (b"same-origin", b"none"):
            headers = [(b"sec-fetch-site", site)]
            assert (await client.send("/v1/answer", [b"{}"], headers))[0] == 200

    run(test())


def test_the_page_reads_no_other_paths_than_were_checked(tmp_path):
    """Parsers differ in which of two equal keys counts."""

    async def test():
        client = Client(tmp_path)
        client.free.set()
        event = b'{"data": [{"path": "/etc/passwd", "path": "%s/a.png"}]}' % bytes(tmp_path)
        assert (await client.send("/gradio_api/queue/join", [event]))[0] == 200
        assert b"passwd" not in client.last and b"/a.png" in client.last

    run(test())
