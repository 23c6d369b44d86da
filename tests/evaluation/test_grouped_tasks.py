"""Tasks with classes: prompts of the query's class, and metrics of the set."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delvm.data.types import Example
from delvm.errors import UserError
from delvm.evaluation import evaluate_students
from delvm.evaluation.queries.query_set import build_query_set
from delvm.evaluation.scores import bootstrap
from delvm.tasks import foreground
from tests.data.shard_makers import write_examples
from tests.evaluation.conftest import BLOCK, SIDE, Oracle

TASK = "foreground_fold0"


def example(number: int) -> Example:
    """A class of two, with a mask of whole blocks."""
    rng = np.random.default_rng(number)
    grid = SIDE // BLOCK
    photo = rng.integers(0, 256, (grid, grid, 3)).repeat(BLOCK, 0).repeat(BLOCK, 1)
    mask = (rng.random((grid, grid)) < 0.5).repeat(BLOCK, 0).repeat(BLOCK, 1)
    mask[:BLOCK, :BLOCK] = True
    key = f"{('bird', 'boat')[number % 2]}-{number:04d}"
    return Example(key, TASK, (photo.astype(np.uint8), foreground.render(mask)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The same ten pairs in val and test."""
    pairs = [example(number) for number in range(10)]
    for split in ("val", "test"):
        write_examples(
            tmp_path / "pairs", split, TASK, pairs, source="tiny", seed=0, image_size=SIDE
        )
    return tmp_path / "pairs"


def test_prompts_are_of_the_class_and_without_the_query(root: Path, tokenizer: Any) -> None:
    options: dict[str, Any] = {"num_queries": 10, "num_shots": 3, "seed": 0, "batch_size": 4}
    query_set = build_query_set(root, TASK, tokenizer, num_prompts=2, **options)
    assert query_set.groups.tolist() == ["bird", "boat"] * 5
    for row, key in enumerate(query_set.keys):
        for prompt in query_set.example_indices[row]:
            keys = [query_set.pool_keys[index] for index in prompt]
            assert len(set(keys)) == 3 and key not in keys
            assert {foreground.class_of(each) for each in keys} == {foreground.class_of(key)}
    with pytest.raises(UserError, match=r"4 pairs of val/.* class bird .*set num_shots=4"):
        build_query_set(root, TASK, tokenizer, **options | {"num_shots": 5})
    with pytest.raises(UserError, match="set shared_prompt=false"):
        build_query_set(root, TASK, tokenizer, shared_prompt=True, **options)


@pytest.mark.slow
def test_set_metrics_are_reported(root: Path, tokenizer: Any, tmp_path: Path) -> None:
    pairs = [example(number) for number in range(10)]
    students: Any = {"half": Oracle(tokenizer, pairs, 0.5), "oracle": Oracle(tokenizer, pairs, 1.0)}
    metrics = evaluate_students(
        root, tokenizer, students, output_dir=tmp_path / "out", num_queries=10, batch_size=4
    )
    result = metrics["tasks"][TASK]
    assert result["metrics"] == ["iou", "accuracy", "psnr", "ssim", "class_miou", "fb_iou"]
    assert result["students"]["oracle"]["scores"]["class_miou"]["mean"] == 1
    half = result["students"]["half"]["scores"]["class_miou"]
    assert half["low"] < half["mean"] < half["high"] < 1 and half["n"] == 10
    assert "mIoU of classes" in (tmp_path / "out/report.html").read_text()
    assert f"{TASK},student/half,class_miou," in (tmp_path / "out/scores.csv").read_text()


def test_interval_of_a_set_metric() -> None:
    rng = np.random.default_rng(0)
    counts = np.stack((rng.integers(0, 50, 200), rng.integers(50, 90, 200)), axis=1).astype(float)
    groups = np.array(["a", "b"] * 100)
    found = bootstrap.set_metric_ci(foreground.class_miou, counts, groups)
    assert found == bootstrap.set_metric_ci(foreground.class_miou, counts, groups)
    assert found.mean == foreground.class_miou(counts, groups)
    # A mean as a metric of the set has the interval of the mean.
    mean = bootstrap.set_metric_ci(lambda c, g: float(c[:, 0].mean()), counts, groups)
    same = bootstrap.mean_ci(counts[:, 0])
    assert mean.low == pytest.approx(same.low, abs=0.4) and mean.mean == pytest.approx(same.mean)
    undefined = bootstrap.set_metric_ci(foreground.class_miou, counts * 0, groups)
    assert np.isnan(undefined.mean) and undefined.n == 200
