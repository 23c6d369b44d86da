"""A complete server under load and under attack: no request is lost, no file leaks."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from delvm.serving.limits import MIB
from tests.serving.conftest import Server, base64_png, noise, png

pytestmark = pytest.mark.slow
REQUESTS = 50
API = "/gradio_api"


def test_many_at_once_are_answered_or_refused(server: Server):
    """50 requests of 4.6 MiB each: at most max_queue + 1 are held at once."""
    large = base64_png(noise(0, (1100, 1100)))
    body = {"pairs": [{"input": base64_png(noise(1)), "target": base64_png(noise(2))}]}
    data = json.dumps(body | {"query": large}).encode()
    assert len(data) > 4 * MIB
    before = server.process.memory_info().rss

    def ask(_: int) -> tuple[int, dict[str, Any], int]:
        answer = httpx.post(f"{server.url}/v1/answer", content=data, headers=JSON, timeout=120)
        return answer.status_code, answer.json(), server.process.memory_info().rss

    with ThreadPoolExecutor(REQUESTS) as clients:
        answers = [*clients.map(ask, range(REQUESTS))]
    statuses = [status for status, _, _ in answers]
    assert len(answers) == REQUESTS and set(statuses) <= {200, 503}
    assert statuses.count(200) >= 9 and statuses.count(503) >= 1  # one is computed, 8 wait
    ids = [answer["ids"] for status, answer, _ in answers if status == 200]
    assert len(ids[0]) == 64 and all(each == ids[0] for each in ids)
    refused = next(answer for status, answer, _ in answers if status == 503)
    assert refused == {"detail": "the queue is full (8 wait): try again later"}
    assert max(rss for _, _, rss in answers) - before < 600 * MIB
    assert ask(0)[0] == 200


JSON = {"content-type": "application/json"}


def test_a_large_request_is_refused_before_it_is_read(server: Server):
    answer = httpx.post(f"{server.url}/v1/answer", content=bytes(17 * MIB), headers=JSON)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "the request is too large: the limit is 16 MiB"
    file = {"files": ("a.png", bytes(17 * MIB), "image/png")}
    assert httpx.post(f"{server.url}{API}/upload", files=file).status_code == 413


def test_no_file_of_the_machine_is_reachable(server: Server, root):
    secret = server.folder / "secret.txt"
    paths = ("/etc/passwd", "//etc/passwd", secret, "secret.txt", root / "README.md")
    for path in (*paths, f"/tmp/../{secret}", "..%2f..%2fetc/passwd", "http://127.0.0.1:1/a"):
        answer = httpx.get(f"{server.url}{API}/file={path}")
        assert answer.status_code in (403, 404), path
        assert "nobody may read" not in answer.text and "root:" not in answer.text
    for path in (f"{API}/proxy=http://127.0.0.1:1/", f"{API}/run/pick", "/docs", "/monitoring"):
        assert httpx.get(f"{server.url}{path}").status_code == 404


def test_no_file_of_the_machine_is_taken_as_an_upload(server: Server):
    """Gradio would copy it to where it can be read."""
    config = httpx.get(f"{server.url}/config").json()
    check = next(each for each in config["dependencies"] if each["api_name"].startswith("check"))
    for path in ("/etc/passwd", str(server.folder / "secret.txt"), "http://127.0.0.1:1/a.png"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = {"data": [file], "fn_index": check["id"], "session_hash": "stranger"}
        answer = httpx.post(f"{server.url}{API}/queue/join", json=event)
        assert answer.status_code == 400
        assert answer.json()["detail"] == "only files that were uploaded here can be used"


def test_an_upload_is_served_as_it_came_and_nothing_else(server: Server):
    """Also a file other than an image, which a browser must not run as a page of this server."""
    file = {"files": ("a.html", b"<script>alert(1)</script>", "text/html")}
    [path] = httpx.post(f"{server.url}{API}/upload", files=file).json()
    answer = httpx.get(f"{server.url}{API}/file={path}")
    assert "attachment" in answer.headers["content-disposition"]
    [path] = httpx.post(
        f"{server.url}{API}/upload", files={"files": ("a.png", png(noise(0)), "image/png")}
    ).json()
    assert httpx.get(f"{server.url}{API}/file={path}").content == png(noise(0))


def test_other_host_names_are_refused(server: Server):
    """A web page elsewhere could give its own name the address of this machine."""
    headers = {"host": "elsewhere.example"}
    assert httpx.get(f"{server.url}/v1/students", headers=headers).status_code == 400
    assert httpx.get(f"{server.url}/v1/students").status_code == 200
