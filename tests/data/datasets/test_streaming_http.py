"""Sentences streamed from a real HTTP server that stalls, cuts answers and fails."""

import itertools
import json
import time

import pytest
import torch

from delvm.data.datasets.streaming_images import StreamingImages, StreamingImagesConfig
from delvm.data.datasets.streaming_sentences import StreamingSentences, StreamingSentencesConfig
from delvm.training.data.streaming import StreamingSentenceDataModule
from tests.data.datasets.streams import COUNTS, IMAGES, examples_of, write_corpus, write_images
from tests.data.http_server import serve


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr("delvm.data.shards.fetch.FIRST_WAIT_S", 0.01)
    return write_corpus(tmp_path / "corpus", monkeypatch)


def stream(url, **changes):
    settings = {"images_per_sentence": IMAGES, "batch_size": 1, "timeout_s": 0.5}
    return StreamingSentences(StreamingSentencesConfig(url, **settings | changes), seed=0)


def first_epoch(data, task, count):
    """The first examples of a task."""
    found = (each for batch in data for each in examples_of(batch, data.tasks))
    return [*itertools.islice((number for name, number in found if name == task), count)]


def shard(task, number):
    return f"/train/{task}/{number:06d}.tar"


@pytest.mark.slow
def test_epoch_is_complete_though_the_server_fails_at_times(root, tmp_path):
    failures = {
        shard("derain", 0): iter(["500", "cut"]),
        shard("derain", 1): iter(["stall"]),
        shard("derain", 5): iter(["cut", "500", "cut"]),
    }
    rejects = tmp_path / "rejects.jsonl"
    with serve(root, failures) as (url, requests):
        data = stream(url, rejects=str(rejects))
        assert sorted(first_epoch(data, "derain", COUNTS["derain"])) == [*range(COUNTS["derain"])]
        assert not rejects.exists()
    assert requests[shard("derain", 5)] >= 4


@pytest.mark.slow
def test_workers_read_what_the_training_process_would(root):
    """The connections of the process that read the manifests are not shared with its workers."""
    settings = {"images_per_sentence": IMAGES, "batch_size": 1}
    with serve(root, {}) as (url, _):
        here = StreamingSentenceDataModule(url, num_workers=0, **settings)
        there = StreamingSentenceDataModule(url, num_workers=1, **settings)
        loaders = [iter(each.train_dataloader()) for each in (here, there)]
        for _ in range(12):
            ours, theirs = map(next, loaders)
            assert (ours["input_ids"] == theirs["input_ids"]).all()
        loaders.clear()


@pytest.mark.slow
def test_shards_that_keep_failing_are_listed(root, tmp_path):
    failures = {
        shard("derain", 0): itertools.repeat("500"),
        shard("derain", 1): itertools.repeat("stall"),
        shard("derain", 5): itertools.repeat("cut"),
    }
    rejects = tmp_path / "rejects.jsonl"
    started = time.monotonic()
    with serve(root, failures) as (url, _):
        data = stream(url, rejects=str(rejects), retries=1)
        expected = {*range(COUNTS["derain"])} - {0, 1, 2, 3, 10, 11}
        assert sorted(first_epoch(data, "derain", len(expected))) == sorted(expected)
        lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert time.monotonic() - started < 20
    reasons = {line["shard"].removeprefix(url): line["reason"] for line in lines}
    assert {*failures} == {*reasons}
    assert "500" in reasons[shard("derain", 0)]
    assert "took more than 0.5 s" in reasons[shard("derain", 1)]


@pytest.mark.slow
def test_manifests_at_one_place_and_shards_on_a_server(root):
    """A server without a listing needs none."""
    with serve(root / "train", {}) as (url, requests):
        patterns = {
            task: f"{url}/{task}/{{000000..00000{last}}}.tar"
            for task, last in (("derain", 3), ("video", 5))
        }
        data = stream(str(root), shards=patterns)
        assert sorted(first_epoch(data, "derain", 8)) == [*range(8)]
    assert all(path.endswith(".tar") for path in requests)


@pytest.mark.slow
def test_images_from_a_server_that_fails_at_times(tmp_path, monkeypatch):
    monkeypatch.setattr("delvm.data.shards.fetch.FIRST_WAIT_S", 0.01)
    root = write_images(tmp_path / "images")
    failures = {
        shard("derain", 0): iter(["cut", "500", "stall"]),
        shard("photos", 2): itertools.repeat("cut"),
    }

    def streamed(path):
        config = StreamingImagesConfig(path, batch_size=4, shuffle_window_shards=9, timeout_s=0.5)
        return [batch["pixels"] for batch in itertools.islice(StreamingImages(config, 0), 8)]

    with serve(root, failures) as (url, requests):
        from_server = streamed(url)
    assert requests[shard("derain", 0)] >= 4
    (root / "train" / "photos" / "000002.tar").unlink()
    assert all(map(torch.equal, from_server, streamed(str(root))))
