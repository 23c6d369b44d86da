"""Inspecting shards: statistics and flagged anomalies."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delvm.data.shards.codebook import write_codebook
from delvm.data.shards.manifest import plan_images, plan_tokens
from delvm.data.shards.writer import write_tokens
from delvm.errors import UserError
from delvm.evaluation.shard_inspection import inspect_shards, shard_kind, side_names
from delvm.interop.fingerprint import fingerprint

N, V, COUNT = 16, 216, 60


@pytest.fixture
def write(tmp_path: Path, tokenizer: Any):
    """Writes ids (n, 2, N) as token shards of a tokenizer, and returns their root."""

    def write_ids(ids: np.ndarray, owner: str = "", task: str = "pose", **options: Any) -> Path:
        root, owner = tmp_path / "tokens", owner or fingerprint(tokenizer)
        pairs = plan_images("train", task, source="s", seed=0, image_size=16)
        plan = plan_tokens(
            pairs, len(ids), tokens_per_image=N, vocab_size=V, fingerprint=owner, **options
        )
        write_codebook(root, torch.zeros(V, 3), owner)
        write_tokens(root, plan, lambda start, stop: iter([ids[start:stop]]))
        return root

    return write_ids


def random_ids(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (COUNT, 2, N))


def test_valid_tokens_raise_no_flag(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    ids = random_ids()
    report = inspect_shards(write(ids), tokenizer, output_dir=tmp_path / "look")
    assert report["flags"] == [] and report["kind"] == "tokens"
    facts = report["splits"]["train"]["pose"]
    assert (facts["count"], facts["shards"]) == (COUNT, 1)
    for number, side in enumerate(("input", "target")):
        assert facts[side]["num_used"] == len(np.unique(ids[:, number]))
        assert facts[side]["num_tokens"] == COUNT * N
    assert json.loads((tmp_path / "look" / "inspect.json").read_text()) == report
    names = {path.name for path in (tmp_path / "look").glob("*.png")}
    assert names == {"train_pose.png", "train_pose_codes.png"}


def test_frequent_code_is_flagged_unless_it_is_black(
    write: Any, tokenizer: Any, tmp_path: Path
) -> None:
    ids = random_ids()
    ids[:, 1, : N // 2] = 0  # black in this codebook
    ids[:, 0, : N // 2] = V - 1  # white
    flags = inspect_shards(write(ids), tokenizer, output_dir=tmp_path)["flags"]
    assert len(flags) == 1
    assert re.search(rf"inputs: code {V - 1} is 5\d% of the tokens", flags[0])


def test_constant_images_are_flagged(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    ids = random_ids()
    ids[:6, 1] = np.arange(100, 106)[:, None]
    flags = inspect_shards(write(ids), tokenizer, output_dir=tmp_path)["flags"]
    assert len(flags) == 1 and "targets: 10% of the images consist of a single code" in flags[0]


def test_duplicate_images_are_flagged(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    ids = np.concatenate([random_ids()[:5]] * 12)
    flags = inspect_shards(write(ids), tokenizer, output_dir=tmp_path)["flags"]
    assert len(flags) == 2 and "inputs: only 5 of 60 images are distinct" in flags[0]


def test_oversampled_duplicates_are_not_flagged(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    root = write(np.concatenate([random_ids()[:5]] * 12), balance={"mode": "oversample"})
    assert inspect_shards(root, tokenizer, output_dir=tmp_path)["flags"] == []


def test_identical_augmented_copies_are_flagged(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    root = write(np.concatenate([random_ids()[:5]] * 12), balance={"mode": "augment"})
    assert len(inspect_shards(root, tokenizer, output_dir=tmp_path)["flags"]) == 2


def test_constant_black_targets_are_flagged(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    ids = random_ids()
    ids[:30, 1] = 0
    flags = inspect_shards(write(ids), tokenizer, output_dir=tmp_path)["flags"]
    assert any("targets: 50% of the images consist of a single code" in flag for flag in flags)


def test_another_tokenizer_is_flagged(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    root = write(random_ids(), "f" * 16)
    flags = inspect_shards(root, tokenizer, output_dir=tmp_path)["flags"]
    assert len(flags) == 1 and f"encoded by tokenizer {'f' * 16}" in flags[0]


def test_code_outside_the_codebook_is_flagged_and_other_tasks_are_inspected(
    write: Any, tokenizer: Any, tmp_path: Path
) -> None:
    root = write(random_ids())
    write(random_ids(1), task="derain")
    manifest = root / "train" / "pose" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"vocab_size": {V}', '"vocab_size": 50'))
    report = inspect_shards(root, tokenizer, output_dir=tmp_path / "look")
    split_flag, task_flag = report["flags"]
    assert split_flag.startswith("train: ") and "vocab_size differs between tasks" in split_flag
    assert task_flag.startswith("train/pose: ") and "is outside [0, 50)" in task_flag
    assert report["splits"]["train"].keys() == {"derain"}
    assert (tmp_path / "look" / "train_derain.png").exists()


def test_incomplete_folder_is_flagged(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    root = write(random_ids())
    write(random_ids(1), task="derain")
    (root / "train" / "derain" / "manifest.json").unlink()
    (flag,) = inspect_shards(root, tokenizer, output_dir=tmp_path)["flags"]
    assert "train/derain is not finished" in flag


def test_image_shards_are_shown(shards: Path, tmp_path: Path) -> None:
    assert shard_kind(shards) == "images"
    report = inspect_shards(shards, None, output_dir=tmp_path)
    assert report["flags"] == [] and report["splits"]["val"]["edges"]["count"] == 8
    assert len(list(tmp_path.glob("*.png"))) == 6


def test_missing_shards_or_tokenizer_is_an_error(write: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards in"):
        inspect_shards(tmp_path, None, output_dir=tmp_path / "look")
    with pytest.raises(UserError, match="set tokenizer=PATH"):
        inspect_shards(write(random_ids()), None, output_dir=tmp_path / "look")
    assert not (tmp_path / "look").exists()


def test_shown_examples_depend_on_the_seed_only(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    root = write(random_ids())
    grids = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        inspect_shards(root, tokenizer, output_dir=tmp_path / name, seed=seed)
        grids.append((tmp_path / name / "train_pose.png").read_bytes())
    assert grids[0] == grids[1] != grids[2]


def test_images_with_annotations_are_named_by_them():
    settings: dict[str, Any] = {"annotations": ["depth", "normal"], "order": "fixed"}
    images = plan_images("train", "a", source="annotated", seed=0, image_size=8, settings=settings)
    images.images_per_example = 3
    assert side_names(images) == ("image", "depth", "normal")
    images.settings["order"] = "shuffled"  # each example has another
    assert side_names(images) == ("image 1", "image 2", "image 3")
    images.settings["order"], images.images_per_example = "fixed", 4
    assert len(side_names(images)) == 4
