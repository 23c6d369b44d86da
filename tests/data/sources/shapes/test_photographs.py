import numpy as np
import pytest

from delvm.data.sources.shapes import photographs
from delvm.data.sources.shapes.photographs import HELD_OUT, TRAIN
from delvm.errors import UserError


def test_splits_share_no_photograph():
    assert not set(TRAIN) & set(HELD_OUT)
    assert not {(p.package, p.path) for p in TRAIN.values()} & {
        (p.package, p.path) for p in HELD_OUT.values()
    }
    assert photographs.photos_of_split("train") is TRAIN
    assert photographs.photos_of_split("val") is photographs.photos_of_split("test") is HELD_OUT


@pytest.mark.parametrize("name", [*TRAIN, *HELD_OUT])
def test_every_photograph_loads(name):
    image = photographs.load_photo(name)
    assert image.mode == "RGB" and 190 <= min(image.size) <= 512
    assert np.asarray(image).std() > 5


def test_is_gray():
    assert photographs.is_gray("camera") and photographs.is_gray("moon")
    assert not photographs.is_gray("coffee") and not photographs.is_gray("chelsea")


@pytest.mark.parametrize("split", ["train", "val"])
def test_crop_uses_photographs_of_its_split(split, monkeypatch):
    opened = set()
    load = photographs.load_photo

    def spy(name: str):
        opened.add(name)
        return load(name)

    monkeypatch.setattr(photographs, "load_photo", spy)
    for seed in range(80):
        photographs.packaged_pool(split).crop(np.random.default_rng(seed), 16)
    assert opened <= set(photographs.photos_of_split(split))
    assert len(opened) >= 5


@pytest.mark.parametrize("size", [16, 48])
def test_crop_shape_range_and_determinism(size):
    first = photographs.packaged_pool("train").crop(np.random.default_rng(7), size)
    assert first.shape == (size, size, 3) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 255 and first.std() > 1
    assert (first == photographs.packaged_pool("train").crop(np.random.default_rng(7), size)).all()


def test_missing_package_error(monkeypatch):
    gone = photographs.Photograph("skimage", "data/gone.png")
    monkeypatch.setitem(photographs.TRAIN, "gone", gone)
    with pytest.raises(UserError, match="'gone' not found in package scikit-image: pip install"):
        photographs.load_photo("gone")
