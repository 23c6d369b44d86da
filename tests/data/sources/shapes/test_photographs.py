import numpy as np
import pytest

from delvm.data.sources.shapes import photographs
from delvm.data.sources.shapes.photographs import HELD_OUT, TRAINING
from delvm.errors import UserError


def test_no_photograph_is_in_both_parts():
    assert not set(TRAINING) & set(HELD_OUT)
    assert not {(p.package, p.path) for p in TRAINING.values()} & {
        (p.package, p.path) for p in HELD_OUT.values()
    }
    assert photographs.of_split("train") is TRAINING
    assert photographs.of_split("val") is photographs.of_split("test") is HELD_OUT


@pytest.mark.parametrize("name", [*TRAINING, *HELD_OUT])
def test_every_photograph_is_in_its_package(name):
    picture = photographs.load(name)
    assert picture.mode == "RGB" and 190 <= min(picture.size) <= 512
    assert np.asarray(picture).std() > 5


def test_grey_photographs_are_known():
    assert photographs.is_grey("camera") and photographs.is_grey("moon")
    assert not photographs.is_grey("coffee") and not photographs.is_grey("chelsea")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_crop_comes_from_its_own_part(split, monkeypatch):
    opened = set()
    load = photographs.load

    def spy(name: str):
        opened.add(name)
        return load(name)

    monkeypatch.setattr(photographs, "load", spy)
    for seed in range(80):
        photographs.crop(np.random.default_rng(seed), split, 16)
    assert opened <= set(photographs.of_split(split))
    assert len(opened) >= 5


@pytest.mark.parametrize("size", [16, 48])
def test_a_crop_is_square_in_range_and_repeatable(size):
    first = photographs.crop(np.random.default_rng(7), "train", size)
    assert first.shape == (size, size, 3) and first.dtype == np.float32
    assert first.min() >= 0 and first.max() <= 255 and first.std() > 1
    assert (first == photographs.crop(np.random.default_rng(7), "train", size)).all()


def test_a_missing_package_is_named(monkeypatch):
    gone = photographs.Photograph("skimage", "data/gone.png")
    monkeypatch.setitem(photographs.TRAINING, "gone", gone)
    with pytest.raises(UserError, match="'gone' not found in package scikit-image: pip install"):
        photographs.load("gone")
