"""What augmentation must not do to annotations, whatever their task is called."""

import pytest

from delvm import tasks
from delvm.data.augment import BalanceConfig, BalanceMode, Jitter
from delvm.data.encode.annotation_limits import allowed_for_annotations
from delvm.data.shards.manifest import plan_images

DELVM = {"max_degrees": 180.0, "crop_area": [0.08, 1.0], "vflip": True}


def images(source="annotated", task="tuple", **settings):
    return plan_images("train", task, source=source, seed=0, image_size=8, settings=settings)


@pytest.mark.parametrize("jitter", list(Jitter))
@pytest.mark.parametrize("source", ["annotated", "annotated_video", "co3d"])
def test_normals_are_not_mirrored_turned_or_stretched_under_any_name(source, jitter):
    """`tuple` itself may be mirrored and turned."""
    balance = BalanceConfig(BalanceMode.augment, jitter=jitter, **DELVM)
    manifest = images(source, kinds={"depth": "depth", "n": "normals"})
    limited = allowed_for_annotations(balance, manifest)
    geometry = limited.geometry(tasks.get("tuple"))
    assert not (geometry.hflip or geometry.vflip or geometry.max_degrees)
    assert geometry.crop_ratio == (1.0, 1.0) and geometry.crop_area == (0.08, 1.0)
    allowed = Jitter.input if source == "annotated" else Jitter.none
    assert limited.jitter is (Jitter.none if jitter is Jitter.none else allowed)
    assert limited.settings()["hflip"] is False  # as the manifest records it


def test_others_keep_what_their_task_allows():
    balance = BalanceConfig(BalanceMode.augment, **DELVM)
    for manifest in (images(kinds={"depth": "depth"}), images(), images(kinds={}), images(kinds=3)):
        assert allowed_for_annotations(balance, manifest) == balance
    free = BalanceConfig(BalanceMode.augment, task_limits=False, jitter=Jitter.all)
    assert allowed_for_annotations(free, images(kinds={"n": "normals"})) is free
