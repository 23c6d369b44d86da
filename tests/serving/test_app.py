"""Page and endpoint as one server, in this process, with untrained models."""

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from gradio.route_utils import delete_files_created_by_app
from PIL import Image

from delvm.serving.app import make_app
from delvm.serving.components import Drawings
from delvm.serving.limits import MIB
from delvm.serving.page_events import UPLOAD
from delvm.serving.prompt_sets import find_prompt_sets
from delvm.serving.service import Question, Service
from tests.serving.conftest import noise, png

API = "/gradio_api"


class Browser:
    """The requests that a browser makes, without one."""

    def __init__(self, client: TestClient) -> None:
        self.client = client
        self.config = client.get("/config").json()

    def join(self, name: str, *values: Any) -> dict[str, Any]:
        """Queue an event of the handler of that name; what cancels it."""
        listed = self.config["dependencies"]
        number = next(each["id"] for each in listed if each["api_name"].startswith(name))
        event = {"fn_index": number, "session_hash": f"{name}{time.monotonic_ns()}"}
        joined = self.client.post(f"{API}/queue/join", json=event | {"data": [*values]})
        assert joined.status_code == 200, joined.text
        return event | joined.json()

    def run(self, name: str, *values: Any) -> dict[str, Any]:
        """The output of the handler of that name."""
        session = self.join(name, *values)["session_hash"]
        messages = self.client.get(f"{API}/queue/data", params={"session_hash": session}).text
        self.messages = [json.loads(line[5:]) for line in messages.split("\n\n") if line]
        return next(each for each in self.messages if each["msg"] == "process_completed")

    def file(self, value: dict[str, Any]) -> bytes:
        answer = self.client.get(f"{API}/file={value['path']}")
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A directory of prompts that neither the current nor the temporary directory contains."""
    folder = tmp_path / "mine"
    (folder / "zebra").mkdir(parents=True)
    for number, name in enumerate(("zebra/1_img", "zebra/1_label", "zebra_query")):
        noise(number).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "elsewhere" / "cache"
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder.parent))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))  # is set by `make_app`: restore it
    monkeypatch.chdir(folder.parent)
    return folder


@pytest.fixture
def client(service: Service, prompts: Path, cache: Path):
    app: Any = make_app(service, find_prompt_sets(prompts), cache)
    with TestClient(app, base_url="http://127.0.0.1") as found:
        yield found


def test_ready_prompts_may_lie_anywhere(client, prompts):
    browser = Browser(client)
    done = browser.run("pick", "zebra")
    assert done["success"], done
    first, second, *_, query = done["output"]["data"]
    files = ("zebra/1_img", "zebra/1_label", "zebra_query")
    for value, name in zip((first, second, query), files, strict=True):
        assert browser.file(value) == (prompts / f"{name}.png").read_bytes()


def test_ready_prompts_outlive_the_deletion_of_old_files(client, service):
    browser = Browser(client)
    *_, query = browser.run("pick", "zebra")["output"]["data"]
    delete_files_created_by_app(client.app.app.routes[-1].app.get_blocks(), age=-1)
    assert Image.open(query["path"]).size == noise(0).size


def form(browser: Browser, *sampling: Any) -> list[Any]:
    """The page after the ready prompt was picked, for two students."""
    *boxes, query = browser.run("pick", "zebra")["output"]["data"]
    sampling = sampling or ("greedy", 1.0, 0, 1.0, 1.0, 0)
    return [["first", "second"], *boxes, query, None, UPLOAD, *sampling]


def answer(browser: Browser, *sampling: Any) -> dict[str, Any]:
    """The last output of two students, as the ready prompt shows."""
    return browser.run("answer", *form(browser, *sampling))


def test_an_answer_writes_the_round_trip_once(client, cache):
    browser = Browser(client)
    assert answer(browser)["success"], browser.messages
    [folder] = cache.glob("answer-*")
    rows = ["0_2.png", "0_4.png", "1_2.png", "1_4.png"]
    assert sorted(each.name for each in folder.iterdir()) == [*rows, "answer.png", "round_trip.png"]
    assert json.dumps(browser.messages).count('/round_trip.png", "url"') == 1


def test_an_answer_needs_space_on_disk(client, cache, service):
    (cache / "large.png").write_bytes(b"")
    os.truncate(cache / "large.png", service.limits.max_cache_mb * MIB + 1)
    done = answer(Browser(client))
    assert not done["success"] and "for uploads and answers are used up" in done["output"]["error"]
    assert not [*cache.glob("answer-*")]


def test_an_answer_that_waits_is_stopped_at_once(client, service, cache):
    question = Question("first", ((png(noise(0)), png(noise(1))),), png(noise(2)))
    held = [service.stream(question) for _ in range(service.limits.max_answers)]
    for each in held:
        next(each)
    browser = Browser(client)
    event = browser.join("answer", *form(browser))
    while not service._slots._waiting:
        time.sleep(0.01)
    assert not [*cache.glob("answer-*")]  # an empty folder would be removed
    later = threading.Timer(5, lambda: [each.close() for each in held])
    later.start()
    assert client.post(f"{API}/cancel", json=event).json() == {"success": True}
    while service._slots._waiting:
        time.sleep(0.01)
    assert later.is_alive()  # else a slot was free, and had been taken
    later.cancel()
    for each in held:
        each.close()
    assert answer(browser)["success"]


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (("sample", 1.0, None, 1.0, 1.0, 0), "Top k is not a number: enter one"),
        (("sample", None, 0, 1.0, 1.0, 0), "Temperature is not a number"),
        (("greedy", 1.0, 0, 1.0, "much", 0), "Guidance is not a number"),
    ],
)
def test_an_empty_number_is_refused_in_words(client, sampling, words):
    done = answer(Browser(client), *sampling)
    assert not done["success"] and words in done["output"]["error"]


def test_a_failure_of_the_server_is_in_words(client, monkeypatch):
    monkeypatch.setattr("delvm.serving.service.stream_rows", lambda *_, **__: 1 / 0)
    done = answer(Browser(client))
    assert done["output"]["error"] == "the server failed: its log has the reason"


def send_drawing(browser: Browser, **fields: Any) -> int:
    """The status of the answer to a part of a drawing."""
    editor = next(each for each in browser.config["components"] if each["type"] == "imageeditor")
    assert editor["props"]["server_fns"] == ["accept_blobs"]
    form = {"component_id": str(editor["id"]), "session_hash": "a", "fn_name": "accept_blobs"}
    url = f"{API}/component_server"
    file = {"file": ("a.png", png(noise(0)), "image/png")}
    return browser.client.post(url, data=form | fields, files=file).status_code


@pytest.fixture
def drawings(monkeypatch) -> Iterator[Drawings]:
    """Those of the next page."""
    found = Drawings(MIB)
    monkeypatch.setattr("delvm.serving.app.Drawings", lambda max_bytes: found)
    yield found


def test_a_drawing_is_kept_and_a_layer_of_any_number_is_not(drawings, client):
    browser = Browser(client)
    assert send_drawing(browser, id="a", type="layer", index="3000000") == 200
    assert drawings.pop("a") is None
    assert send_drawing(browser, id="a", type="composite", index="null") == 200
    assert drawings.pop("a") == png(noise(0))
    assert send_drawing(browser) == 400
    for each in client.app.app.routes[-1].app.get_blocks().blocks.values():
        assert not getattr(each, "blob_storage", None)


def test_a_form_that_ends_early_leaves_no_file(client, cache):
    before = sorted(cache.parent.rglob("*"))
    fields = {"component_id": "1", "session_hash": "a", "fn_name": "accept_blobs"}
    start = '--x\r\nContent-Disposition: form-data; name="{}"'
    parts = [f"{start.format(key)}\r\n\r\n{value}\r\n" for key, value in fields.items()]
    parts.append(f'{start.format("file")}; filename="a"\r\n\r\n')
    body = "".join(parts).encode() + bytes(MIB // 2)
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post(f"{API}/component_server", content=body, headers=headers)
    assert answer.status_code == 400 and "a drawing has the fields" in answer.json()["detail"]
    assert sorted(cache.parent.rglob("*")) == before
