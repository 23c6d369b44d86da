"""Synthetic reasoning: what changes, and scores that see the color or not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from delvm import tasks
from delvm.data.sources.generated_base import GeneratedPairs
from delvm.data.sources.reasoning import Reasoning
from delvm.data.sources.stereo import Stereo
from delvm.errors import UserError
from delvm.tasks import reasoning
from tests.data.sources.checks import prepared, read_all, same


@pytest.mark.parametrize("change", reasoning.CHANGES)
def test_only_what_is_named_changes(change: str) -> None:
    for seed in range(20):
        before, after = reasoning.random_pair(change, np.random.default_rng(seed))
        assert (before.x, before.y) == (after.x, after.y)
        assert 10 <= before.x <= 214 and 10 <= before.radius <= 50
        assert (before.color, before.square) == (reasoning.GREEN, False)
        assert (after.color == reasoning.BLUE) == ("color" in change)
        assert after.square == ("shape" in change)
        assert (before.radius != after.radius) == ("size" in change)


def test_objects_have_their_areas() -> None:
    for square, area in ((False, np.pi * 40**2), (True, 80**2)):
        shown = reasoning.Object(100, 90, 40, reasoning.BLUE, square)
        labels = reasoning.parse(reasoning.render(shown, 448))
        assert (labels == 4).sum() / 4 == pytest.approx(area, rel=0.01)
        rows, columns = np.nonzero(labels)
        assert (columns.mean() / 2, rows.mean() / 2) == pytest.approx((99.75, 89.75), abs=0.3)


def test_scores_see_the_color_or_not() -> None:
    truth = reasoning.render(reasoning.Object(112, 112, 40, reasoning.BLUE), 224)
    other = reasoning.render(reasoning.Object(112, 112, 40, reasoning.GREEN), 224)
    square = reasoning.render(reasoning.Object(112, 112, 40, reasoning.BLUE, True), 224)
    assert reasoning.iou(truth, truth) == reasoning.color_blind_iou(other, truth) == 1
    assert reasoning.iou(other, truth) == 0
    assert reasoning.iou(square, truth) == pytest.approx(np.pi / 4, abs=0.03)
    drifted = (truth * 0.8 + 20).astype(np.uint8)
    assert reasoning.iou(drifted, truth) == 1
    assert np.isnan(reasoning.iou(truth, np.full_like(truth, 255)))


def test_source_generates_every_task(tmp_path: Path) -> None:
    source = Reasoning(size=32, num_val=4, num_test=3)
    manifests = prepared(source, tmp_path, ["val", "test"])
    assert {task for _, task in manifests} == {f"reasoning_{each}" for each in reasoning.CHANGES}
    assert manifests["test", "reasoning_color"].count == 3
    assert all(tasks.get(task).primary_metric == "iou" for _, task in manifests)
    one, again, other = (
        read_all(Reasoning(size=32, num_test=3, seed=seed), "test")["reasoning_size"]
        for seed in (0, 0, 1)
    )
    assert same(one, again) and not same(one, other)
    val = read_all(source, "val")["reasoning_size"]
    assert not same(val[:3], read_all(source, "test")["reasoning_size"])
    with pytest.raises(UserError, match="did you mean 'color'"):
        Reasoning(changes=["colr"]).chunks("test")


@pytest.mark.parametrize("source", [Reasoning(), Stereo()], ids=["reasoning", "stereo"])
def test_generated_pairs_share_settings_and_their_checks(source: GeneratedPairs) -> None:
    assert {"size", "seed"} & source.settings("test", "x").keys() == set()
    assert {"num_train", "num_val", "num_test"} <= source.settings("test", "x").keys()
    default = type(source).num_test
    changed = replace(source, size=0, num_test=-1)
    lowest = type(source).least_pairs
    assert changed.validate() == [
        f"size=0 is below 1: set source.size={type(source).size}",
        f"num_test=-1 is below {lowest}: set source.num_test={default}",
    ]
    with pytest.raises(UserError, match="source.size=0 is below 1"):
        changed.chunks("test")
    chunks = replace(source, num_test=2300).chunks("test")
    assert [[c.count for c in each] for each in chunks.values()] == [[1000, 1000, 300]] * len(
        chunks
    )
