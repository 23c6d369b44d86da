"""Streamed sentences: the examples of each epoch, the mixture, and shards that fail."""

import io
import itertools
import json
import threading
from collections import Counter

import fsspec
import numpy as np
import pytest

from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.datasets.streaming_sentences import StreamingSentences, StreamingSentencesConfig
from delvm.data.shards.fetch import read_ahead
from delvm.errors import UserError
from tests.data.datasets.streams import COUNTS, IMAGES, examples_of, open_streams, write_corpus
from tests.data.shard_makers import rewrite_tar


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_corpus(tmp_path, monkeypatch)


def take(data, count):
    return [*itertools.islice(data, count)]


def examples(data, task):
    """The examples of one task in the order in which one stream reads them."""
    for batch in data:
        yield from (number for name, number in examples_of(batch, data.tasks) if name == task)


@pytest.mark.parametrize("task", COUNTS)
def test_epochs_have_the_examples_of_the_indexed_reader(root, task):
    """The same set, once each, in every epoch."""
    [data] = open_streams(root)
    indexed = SentenceDataset(SentencesConfig(str(root), images_per_sentence=IMAGES), seed=0)
    theirs = (
        number
        for first in itertools.count()
        for name, number in examples_of(indexed[np.array([first])], indexed.tasks)
        if name == task
    )
    ours, count = examples(data, task), COUNTS[task]
    for _ in range(3):
        epoch = [*itertools.islice(ours, count)]
        assert sorted(epoch) == [*range(count)] and epoch != sorted(epoch)
        assert sorted(epoch) == sorted(itertools.islice(theirs, count))


def test_streams_of_all_ranks_share_an_epoch(root):
    """Every example of the first epoch is in one stream, and in one alone."""
    streams = open_streams(root, ranks=3)
    for number, task in enumerate(streams[0].mixture_weights):
        seen = Counter()
        per_epoch = streams[0].layout.shuffles[number].num_windows
        for stream, data in enumerate(streams):
            reader = data.open_stream(number, stream)
            # An epoch is over for a stream when its position is in a window of the next one.
            while reader.position.element < per_epoch:
                seen[int(reader.take(1)[0, 0])] += 1
        assert len(seen) == COUNTS[task] and set(seen.values()) == {1}


def test_tasks_follow_each_other_as_in_the_indexed_reader(root):
    weights = {"derain": 3.0, "video": 1.0}
    config = SentencesConfig(str(root), images_per_sentence=IMAGES, task_weights=weights)
    expected, _ = SentenceDataset(config, seed=0).schedule(np.arange(24))
    ranks = open_streams(root, ranks=2, task_weights=weights)
    batches = zip(*(take(data, 6) for data in ranks), strict=True)
    found = np.concatenate([batch["task"] for both in batches for batch in both])
    assert found.tolist() == expected.tolist() and np.bincount(found).tolist() == [18, 6]


def test_packing(root):
    """Each image is in the row and under the task that its document has."""
    [data] = open_streams(root, packing=True, images_per_sentence=8)
    seen = Counter()
    for batch in take(data, 40):
        for ids, task in zip(batch["input_ids"], batch["task"].tolist(), strict=True):
            firsts = ids.reshape(8, -1)[:, 0].tolist()
            images = [(i, t) for i, t in zip(firsts, task, strict=True) if t >= 0]
            assert all((i >= 500) == (t == 1) for i, t in images)
            seen.update(i for i, _ in images)
    assert len(seen) == 2 * COUNTS["derain"] + 3 * COUNTS["video"]


def test_memory_holds_two_windows():
    made = []

    def windows():
        for number in range(100):
            made.append(number)
            yield number

    for number, item in enumerate(itertools.islice(read_ahead(windows()), 20)):
        assert item == number and len(made) <= number + 2


def test_next_window_is_read_while_one_is_in_use():
    computed = [threading.Event() for _ in range(3)]

    def windows():
        for number, event in enumerate(computed):
            event.set()
            yield number

    ahead = read_ahead(windows())
    assert next(ahead) == 0 and computed[1].wait(30)


def test_error_of_the_reading_thread_is_raised():
    def windows():
        yield 1
        raise UserError("broken")

    ahead = read_ahead(windows())
    assert next(ahead) == 1
    with pytest.raises(UserError, match="broken"):
        next(ahead)


def damage(root, task, number):
    """Cut a shard off in its first record."""
    path = root / "train" / task / f"{number:06d}.tar"
    path.write_bytes(path.read_bytes()[:600])
    return path


def test_rejected_shard_is_listed_and_the_stream_goes_on(root, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    cut = damage(root, "derain", 3)
    (root / "train" / "derain" / "000007.tar").unlink()
    rejects = tmp_path / "run" / "rejects.jsonl"
    [data] = open_streams(root, rejects=str(rejects), retries=2)
    found = [*itertools.islice(examples(data, "derain"), COUNTS["derain"] - 4)]
    assert sorted(found) == sorted({*range(COUNTS["derain"])} - {6, 7, 14, 15})
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    first = {line["shard"]: line for line in lines if line["epoch"] == 0}
    assert len(first) == 2 and first[str(cut)]["attempts"] == 3
    assert "damaged" in first[str(cut)]["reason"]
    missing = first[str(root / "train" / "derain" / "000007.tar")]
    assert missing["attempts"] == 1 and "not found" in missing["reason"]


def test_shards_from_commands(root):
    folder = root / "train" / "derain"
    settings = {"task_weights": {"derain": 1.0}, "retries": 0}
    [piped] = open_streams(
        root, shards={"derain": f"pipe:cat {folder}/{{000000..000011}}.tar"}, **settings
    )
    [plain] = open_streams(root, **settings)
    for ours, theirs in zip(take(piped, 6), take(plain, 6), strict=True):
        assert (ours["input_ids"] == theirs["input_ids"]).all()


def test_store_gives_what_a_disk_does(root):
    fsspec.filesystem("memory").put(f"{root}/", "/corpus/", recursive=True)
    [remote], [local] = open_streams("memory://corpus"), open_streams(root)
    for ours, theirs in zip(take(remote, 6), take(local, 6), strict=True):
        assert (ours["input_ids"] == theirs["input_ids"]).all()


def test_position_does_not_depend_on_shards_that_failed(root):
    """A run that resumes when a shard can be read again reads all others exactly once."""
    path = root / "train" / "derain" / "000003.tar"
    whole = path.read_bytes()
    settings = {"task_weights": {"derain": 1.0}, "batch_size": 1, "shuffle_window_shards": 12}
    damage(root, "derain", 3)
    [data] = open_streams(root, retries=0, **settings)
    batches = take(data, 4)
    before = [number for batch in batches for _, number in examples_of(batch, data.tasks)]
    data.state.positions[0] = batches[-1]["stream"][1]
    data.state.next_index = batches[-1]["next_index"]
    path.write_bytes(whole)
    [unbroken] = open_streams(root, **settings)
    order = [*itertools.islice(examples(unbroken, "derain"), COUNTS["derain"])]
    missed = [number for number in order[: order.index(before[-1])] if number in (6, 7)]
    assert [number for number in order if number not in missed][: len(before)] == before
    rest = order[order.index(before[-1]) + 1 :]
    assert [*itertools.islice(examples(data, "derain"), len(rest))] == rest


def test_shard_that_ends_too_early_is_reported(root, capsys):
    """Cut between two records, where tarfile sees a proper end."""
    [data] = open_streams(root, retries=0, shuffle_window_shards=12)
    file = io.BytesIO()
    np.save(file, np.zeros((1, 2, 4), np.uint16))
    rewrite_tar(root / "train" / "derain" / "000000.tar", [("0.ids.npy", file.getvalue())])
    take(data, 12)
    assert "holds 1 examples, its manifest lists 2" in capsys.readouterr().err


def test_lost_store_stops_the_stream(root, monkeypatch):
    monkeypatch.setattr("delvm.data.datasets.streaming.MAX_SHARDS_IN_A_ROW", 5)
    for path in (root / "train" / "video").glob("*.tar"):
        path.unlink()
    [data] = open_streams(root)
    with pytest.raises(UserError, match="5 shards of task 'video' in a row"):
        take(data, 100)


@pytest.mark.parametrize(
    ("changes", "reason"), [({"retries": -1}, "retries=-1"), ({"timeout_s": 0.0}, "timeout_s=0.0")]
)
def test_settings_are_checked(changes, reason):
    assert any(reason in line for line in StreamingSentencesConfig(**changes).validate())
    assert not StreamingSentencesConfig().validate()


def test_sentence_longer_than_the_examples_is_refused(root):
    with pytest.raises(UserError, match=r"an example of task 'video' has 3 images"):
        StreamingSentences(StreamingSentencesConfig(str(root), images_per_sentence=8), seed=0)
