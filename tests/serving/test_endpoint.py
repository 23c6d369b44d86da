"""The JSON endpoint, in this process, with untrained models."""

import asyncio
import base64
import io
import json

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from delvm.serving.endpoint import add_endpoint
from delvm.serving.service import Question
from tests.serving.conftest import base64_png, body, noise, png


@pytest.fixture(scope="module")
def client(service):
    app = FastAPI(openapi_url="/v1/openapi.json")
    add_endpoint(app, service)
    with TestClient(app) as found:
        yield found


def test_an_answer_is_that_of_the_prompter(client, service):
    sampling = {"decoding": "sample", "temperature": 0.7, "top_k": 9, "top_p": 0.9, "seed": 2}
    found = client.post("/v1/answer", json=body(student="second", sampling=sampling)).json()
    pairs = [(noise(0), noise(1)), (noise(2), noise(3))]
    [expected] = service.prompters["second"].stream(pairs, [noise(99)], **sampling)
    image = Image.open(io.BytesIO(base64.b64decode(found["answer"])))
    assert image.format == "PNG" and image.tobytes() == expected.image.tobytes()
    assert found["ids"] == expected.ids.tolist() and found["student"] == "second"
    round_trip = Image.open(io.BytesIO(base64.b64decode(found["round_trip"])))
    assert round_trip.size == image.size and found["round_trip_psnr"] > 0 and found["seconds"] > 0


def test_the_first_student_is_the_default(client):
    assert client.post("/v1/answer", json=body()).json()["student"] == "first"


def test_students_and_limits_are_listed(client):
    found = client.get("/v1/students").json()
    assert found["limits"] == {"max_upload_mb": 1, "max_pixels": 10_000, "max_queue": 3}
    assert [each["name"] for each in found["students"]] == ["first", "second"]
    first = found["students"][0]
    assert (first["resolution"], first["tokens_per_image"], first["max_pairs"]) == (16, 4, 4)


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"student": "fisrt"}, 400, "unknown student 'fisrt': did you mean 'first'?"),
        ({"query": "!!"}, 400, "the query is not base64"),
        ({"query": base64.b64encode(b"text").decode()}, 400, "cannot be read as an image"),
        ({"query": base64_png(noise(0, (200, 200)))}, 400, "200 x 200 pixels, above the limit"),
        ({"pairs": []}, 422, "pairs: List should have at least 1 item"),
        ({"query": None}, 422, "query: Input should be a valid string"),
        ({"temperature": 1}, 422, "temperature: Extra inputs are not permitted"),
        ({"sampling": {"decoding": "best"}}, 422, "sampling.decoding: Input should be"),
        ({"sampling": {"temperature": 1}}, 400, "set decoding=sample or temperature=0"),
        ({"sampling": {"top_k": 0, "decoding": "sample", "temperature": 1}}, 400, "top_k=0 is"),
        ({"sampling": {"seed": -1}}, 422, "sampling.seed"),
    ],
)
def test_errors_are_in_words(client, changes, status, words):
    answer = client.post("/v1/answer", json=body() | changes)
    assert answer.status_code == status and words in answer.json()["detail"]
    assert len(answer.text) < 600  # nothing of the images is sent back


def test_too_many_pairs(client):
    answer = client.post("/v1/answer", json=body(pairs=5))
    assert answer.status_code == 400 and "use at most 4 pairs" in answer.json()["detail"]


def test_a_client_that_leaves_stops_waiting(client, service):
    held = [service.stream(question()) for _ in range(service.limits.max_answers)]
    for each in held:
        next(each)

    async def leave():
        sent = []
        data = json.dumps(body()).encode()
        parts = [{"type": "http.request", "body": data}, {"type": "http.disconnect"}]

        async def receive():
            return parts.pop(0)

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/answer", "query_string": b""}
        headers = [(b"content-type", b"application/json")]
        await client.app(scope | {"headers": headers}, receive, send)
        return sent[0]["status"]

    assert asyncio.run(asyncio.wait_for(leave(), 5)) == 499
    for each in held:
        each.close()
    assert client.post("/v1/answer", json=body()).status_code == 200


def question() -> Question:
    return Question("first", ((png(noise(0)), png(noise(1))),), png(noise(2)))


def test_a_failure_of_the_server_is_in_words(client, service, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory at /secret")
        yield

    monkeypatch.setattr("delvm.serving.service.stream_rows", broken)
    outside = TestClient(client.app, raise_server_exceptions=False)
    answer = outside.post("/v1/answer", json=body())
    assert answer.status_code == 500
    assert answer.json() == {"detail": "the server failed: its log has the reason"}


def test_it_describes_itself(client):
    found = client.get("/v1/openapi.json").json()
    assert set(found["paths"]) == {"/v1/students", "/v1/answer"}
    assert {"200", "400", "408", "413", "422", "503"} <= set(
        found["paths"]["/v1/answer"]["post"]["responses"]
    )
