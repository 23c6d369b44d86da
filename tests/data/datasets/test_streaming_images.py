"""Streamed images: the images of each epoch, those that fail, and how many are in memory."""

import itertools
import json
import tracemalloc

import numpy as np
import pytest

from delvm.data.datasets.images import ImageDataset, ImagesConfig
from delvm.data.datasets.streaming_images import StreamingImages, StreamingImagesConfig
from delvm.data.types import Example
from delvm.errors import UserError
from tests.data.datasets.streams import IMAGE_COUNTS, IMAGE_KINDS, write_images
from tests.data.shard_makers import rewrite_tar, tar_members, write_examples

SIZES = {task: IMAGE_COUNTS[task] * IMAGE_KINDS[task] for task in IMAGE_COUNTS}


@pytest.fixture
def root(tmp_path):
    return write_images(tmp_path / "images")


def open_images(root, **changes):
    settings = {"batch_size": 4, "shuffle_window_shards": 2} | changes
    return StreamingImages(StreamingImagesConfig(str(root), **settings), seed=0)


def of_task(batches, schedule, task):
    """The images of one task as bytes, in the order of the batches."""
    number = [*IMAGE_COUNTS].index(task)
    for batch in batches:
        end, pixels = batch["next_index"], batch["pixels"].numpy()
        tasks, _ = schedule(np.arange(end - len(pixels), end))
        yield from (image.tobytes() for image in pixels[tasks == number])


@pytest.mark.parametrize("task", IMAGE_COUNTS)
def test_epochs_have_the_images_of_the_indexed_reader(root, task):
    """To the pixel, also in later epochs, in which images are augmented."""
    data = open_images(root)
    indexed = ImageDataset(ImagesConfig(str(root), batch_size=4), seed=0)
    theirs = (indexed[np.arange(first, first + 4)] for first in itertools.count(0, 4))
    ours, theirs = (of_task(each, indexed.schedule, task) for each in (data, theirs))
    epochs = []
    for _ in range(3):
        mine, other = ([*itertools.islice(each, SIZES[task])] for each in (ours, theirs))
        assert sorted(mine) == sorted(other) and len(set(mine)) == SIZES[task]
        epochs.append(mine)
    assert sorted(epochs[0]) != sorted(epochs[1]) != sorted(epochs[2])


def test_tasks_follow_each_other_as_in_the_indexed_reader(root):
    data, indexed = open_images(root), ImageDataset(ImagesConfig(str(root)), seed=0)
    assert data.mixture(100) == indexed.mixture(100) == {"derain": 0.5, "photos": 0.5}


def test_rejected_image_is_listed_and_the_stream_goes_on(root, tmp_path):
    schedule = open_images(root).layout.schedule
    count = SIZES["derain"]
    expected = [*itertools.islice(of_task(open_images(root), schedule, "derain"), count)]
    path = root / "train" / "derain" / "000001.tar"
    *others, (name, contents) = tar_members(path)
    rewrite_tar(path, [*others, (name, contents[: len(contents) // 2])])
    rejects = tmp_path / "run" / "rejects.jsonl"
    found = of_task(open_images(root, rejects=str(rejects)), schedule, "derain")
    found = [*itertools.islice(found, count - 1)]
    assert len([image for image in expected if image not in found]) == 1
    assert found == [image for image in expected if image in found]
    [line] = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert line["task"] == "derain" and line["image"] == f"{path}: {name}"
    assert line["epoch"] == 0 and "cannot be read as an image" in line["reason"]


def test_image_of_another_size_is_rejected(root, capsys):
    other = write_images(root.parent / "other", side=16)
    small, large = (tar_members(each / "train/photos/000000.tar") for each in (root, other))
    rewrite_tar(root / "train/photos/000000.tar", [large[0], *small[1:]])
    next(iter(open_images(root, batch_size=2 * SIZES["photos"])))
    assert "000000.000.png is (16, 16, 3), not (8, 8, 3)" in capsys.readouterr().err


def test_damaged_shard_is_rejected_as_one(root, capsys):
    path = root / "train" / "photos" / "000002.tar"
    path.write_bytes(path.read_bytes()[:700])
    data = open_images(root, retries=0)
    count = SIZES["photos"]
    found = [*itertools.islice(of_task(data, data.layout.schedule, "photos"), count - 2)]
    assert len(set(found)) == count - 2 and "000002.tar is damaged" in capsys.readouterr().err


def test_images_that_all_fail_stop_the_stream(root, monkeypatch):
    monkeypatch.setattr("delvm.data.datasets.streaming_images.MAX_IMAGES_IN_A_ROW", 6)
    for path in (root / "train" / "photos").glob("*.tar"):
        rewrite_tar(path, [(name, b"x") for name, _ in tar_members(path)])
    with pytest.raises(UserError, match="6 images of task 'photos' in a row could not be read"):
        [*itertools.islice(open_images(root), 10)]


def test_memory_holds_files_and_decodes_what_is_asked_for(root, monkeypatch):
    decoded = []

    def decode(contents, name, side):
        decoded.append(name)
        return np.zeros((side, side, 3), np.uint8)

    monkeypatch.setattr("delvm.data.datasets.streaming_images.decode_image", decode)
    next(iter(open_images(root, batch_size=4)))
    assert len(decoded) == 4


def test_memory_holds_each_shard_of_two_windows_once(tmp_path):
    """The images are views of the fetched tar; a copy of each would be one shard more."""
    images = np.random.default_rng(0).integers(0, 256, (24, 2, 256, 256, 3), np.uint8)
    examples = [Example(f"{number:06d}", "pose", tuple(each)) for number, each in enumerate(images)]
    settings = {"source": "fake", "seed": 0, "image_size": 256}
    write_examples(tmp_path, "train", "pose", examples, shard_size=4, **settings)
    size = (tmp_path / "train" / "pose" / "000000.tar").stat().st_size
    stream = iter(open_images(tmp_path, batch_size=1, shuffle_window_shards=1))
    next(stream)
    tracemalloc.start()
    for _ in itertools.islice(stream, 40):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * size


def test_settings_are_checked():
    assert any("retries=-1" in line for line in StreamingImagesConfig(retries=-1).validate())
    assert any("batch_size=0" in line for line in StreamingImagesConfig(batch_size=0).validate())
    assert not StreamingImagesConfig().validate()


@pytest.mark.parametrize(
    "reader", [open_images, lambda root: ImageDataset(ImagesConfig(str(root)), 0)]
)
def test_task_without_images_is_refused(root, reader):
    path = root / "train" / "photos" / "manifest.json"
    values = json.loads(path.read_text()) | {"count": 0, "shards": []}
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="task 'photos' has no images: remove .*photos"):
        reader(root)
