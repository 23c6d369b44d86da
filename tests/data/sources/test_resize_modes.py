"""The setting `resize` of sources: pixels, labels and points alike, recorded in manifests."""

import numpy as np
import pytest
from PIL import Image

from delvm.data.resizing import ResizeMode, to_square
from delvm.data.shards.manifest import load_manifest
from delvm.data.sources.derived import Derived
from delvm.data.sources.images import Images
from delvm.data.sources.paired_folders import Paired
from delvm.errors import UserError
from tests.data.sources.bad_files import save, smooth
from tests.data.sources.checks import prepared, read_all

SIZE = 16
ALL_IN_TRAIN = {"size": SIZE, "val_fraction": 0, "test_fraction": 0}


@pytest.mark.parametrize("mode", list(ResizeMode))
def test_images_are_made_square_as_set_and_recorded(tmp_path, mode):
    image = smooth(41, 30)
    save(tmp_path / "raw/a.png", image)
    source = Images(path=str(tmp_path / "raw"), resize=mode, **ALL_IN_TRAIN)
    [example] = read_all(source, "train")["images"]
    expected = to_square(Image.fromarray(image), SIZE, mode)
    assert (example.input == np.asarray(expected)).all()
    prepared(source, tmp_path / "out", ["train"])
    manifest = load_manifest(tmp_path / "out", "train", "images", "images")
    assert manifest.resize == mode.value


def test_other_modes_reach_derived_and_paired_sources(tmp_path):
    image = smooth(41, 30)
    for side in ("input", "target"):
        save(tmp_path / side / "a.png", image)
    expected = np.asarray(to_square(Image.fromarray(image), SIZE, ResizeMode.squash))
    settings = ALL_IN_TRAIN | {"path": str(tmp_path), "resize": "squash"}
    [pair] = read_all(Paired(task="copy", **settings), "train")["copy"]
    assert (pair.input == expected).all() and (pair.target == expected).all()
    edges = read_all(Derived(tasks=["edges"], **settings), "train")["edges"]
    assert all((each.input == expected).all() for each in edges)


def test_shards_of_another_mode_are_refused(tmp_path):
    save(tmp_path / "raw/a.png", smooth(41, 30))
    settings = ALL_IN_TRAIN | {"path": str(tmp_path / "raw")}
    prepared(Images(**settings), tmp_path / "out", ["train"])
    with pytest.raises(UserError, match="resize=short_side, requested is resize=pad"):
        prepared(Images(resize=ResizeMode.pad, **settings), tmp_path / "out", ["train"])


def test_an_unknown_mode_is_refused(tmp_path):
    source = Images(path=str(tmp_path), resize="stretch")
    assert any("resize=stretch is unknown" in error for error in source.validate())
