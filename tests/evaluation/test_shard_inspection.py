"""A look into shards: what is counted and what is flagged."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delvm.data.shards.manifest import plan_images, plan_tokens, write_codebook
from delvm.data.shards.writer import write_tokens
from delvm.errors import UserError
from delvm.evaluation.shard_inspection import inspect, kind_of
from delvm.interop.fingerprint import fingerprint

N, V, COUNT = 16, 216, 60


@pytest.fixture
def write(tmp_path: Path, tokenizer: Any):
    """Writes ids (n, 2, N) as token shards of a tokenizer; returns their root."""

    def made(ids: np.ndarray, mark: str = "", task: str = "pose", **options: Any) -> Path:
        root, mark = tmp_path / "tokens", mark or fingerprint(tokenizer)
        pairs = plan_images("train", task, source="s", seed=0, image_size=16)
        plan = plan_tokens(
            pairs, len(ids), tokens_per_image=N, vocab_size=V, fingerprint=mark, **options
        )
        write_codebook(root, torch.zeros(V, 3), mark)
        write_tokens(root, plan, lambda start, stop: iter([ids[start:stop]]))
        return root

    return made


def random_ids(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (COUNT, 2, N))


def test_sound_tokens_raise_no_flag(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    ids = random_ids()
    report = inspect(write(ids), tokenizer, output=tmp_path / "look")
    assert report["flags"] == [] and report["kind"] == "tokens"
    facts = report["splits"]["train"]["pose"]
    assert (facts["count"], facts["shards"]) == (COUNT, 1)
    for number, side in enumerate(("input", "target")):
        assert facts[side]["num_used"] == len(np.unique(ids[:, number]))
        assert facts[side]["num_tokens"] == COUNT * N
    assert json.loads((tmp_path / "look" / "inspect.json").read_text()) == report
    names = {path.name for path in (tmp_path / "look").glob("*.png")}
    assert names == {"train_pose.png", "train_pose_codes.png"}


def test_a_frequent_code_is_flagged_unless_it_is_black(
    write: Any, tokenizer: Any, tmp_path: Path
) -> None:
    ids = random_ids()
    ids[:, 1, : N // 2] = 0  # black in this codebook
    ids[:, 0, : N // 2] = V - 1  # white
    flags = inspect(write(ids), tokenizer, output=tmp_path)["flags"]
    assert len(flags) == 1
    assert re.search(rf"inputs: code {V - 1} is 5\d% of the tokens", flags[0])


def test_constant_pictures_are_flagged(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    ids = random_ids()
    ids[:6, 1] = np.arange(100, 106)[:, None]
    flags = inspect(write(ids), tokenizer, output=tmp_path)["flags"]
    assert len(flags) == 1 and "targets: 10% of the pictures are one code all over" in flags[0]


def test_repeated_pictures_are_flagged_unless_asked_for(
    write: Any, tokenizer: Any, tmp_path: Path
) -> None:
    ids = np.concatenate([random_ids()[:5]] * 12)
    flags = inspect(write(ids), tokenizer, output=tmp_path)["flags"]
    assert len(flags) == 2 and "inputs: only 5 of 60 pictures are distinct" in flags[0]


def test_repetition_that_balances_is_no_fault(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    root = write(np.concatenate([random_ids()[:5]] * 12), balance={"mode": "oversample"})
    assert inspect(root, tokenizer, output=tmp_path)["flags"] == []


def test_copies_that_should_differ_and_do_not_are_flagged(
    write: Any, tokenizer: Any, tmp_path: Path
) -> None:
    root = write(np.concatenate([random_ids()[:5]] * 12), balance={"mode": "augment"})
    assert len(inspect(root, tokenizer, output=tmp_path)["flags"]) == 2


def test_constant_black_targets_are_flagged_too(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    ids = random_ids()
    ids[:30, 1] = 0
    flags = inspect(write(ids), tokenizer, output=tmp_path)["flags"]
    assert any("targets: 50% of the pictures are one code all over" in flag for flag in flags)


def test_shards_of_another_tokenizer(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    root = write(random_ids(), "f" * 16)
    flags = inspect(root, tokenizer, output=tmp_path)["flags"]
    assert len(flags) == 1 and f"encoded by tokenizer {'f' * 16}" in flags[0]


def test_a_code_outside_the_codebook_is_flagged_and_does_not_stop_the_rest(
    write: Any, tokenizer: Any, tmp_path: Path
) -> None:
    root = write(random_ids())
    write(random_ids(1), task="derain")
    manifest = root / "train" / "pose" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"vocab_size": {V}', '"vocab_size": 50'))
    report = inspect(root, tokenizer, output=tmp_path / "look")
    whole, folder = report["flags"]
    assert whole.startswith("train: ") and "vocab_size differs between tasks" in whole
    assert folder.startswith("train/pose: ") and "is outside [0, 50)" in folder
    assert report["splits"]["train"].keys() == {"derain"}
    assert (tmp_path / "look" / "train_derain.png").exists()


def test_an_unfinished_folder_is_flagged(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    root = write(random_ids())
    write(random_ids(1), task="derain")
    (root / "train" / "derain" / "manifest.json").unlink()
    (flag,) = inspect(root, tokenizer, output=tmp_path)["flags"]
    assert "train/derain is not finished" in flag


def test_pairs_are_shown_too(shards: Path, tmp_path: Path) -> None:
    assert kind_of(shards) == "images"
    report = inspect(shards, None, output=tmp_path)
    assert report["flags"] == [] and report["splits"]["val"]["edges"]["count"] == 8
    assert len(list(tmp_path.glob("*.png"))) == 6


def test_refusals(write: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards in"):
        inspect(tmp_path, None, output=tmp_path / "look")
    with pytest.raises(UserError, match="set tokenizer=PATH"):
        inspect(write(random_ids()), None, output=tmp_path / "look")
    assert not (tmp_path / "look").exists()


def test_the_choice_depends_on_the_seed_alone(write: Any, tokenizer: Any, tmp_path: Path) -> None:
    root = write(random_ids())
    sheets = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        inspect(root, tokenizer, output=tmp_path / name, seed=seed)
        sheets.append((tmp_path / name / "train_pose.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
