"""Every kind of annotated example from raw files to a trained student, as a user runs it."""

import csv
import json

import numpy as np
import pytest

from delvm import cli
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.shards.manifest import load_manifests
from tests.data.sources.annotated_files import (
    write_annotated,
    write_annotated_clip,
    write_co3d,
)

SIZE, TOKENS = 64, 64
KINDS = {
    "annotated": 4, "video_separate": 8, "video_interleaved": 8, "object_views_separate": 8,
    "object_views_interleaved": 8,
}  # fmt: skip


def run(*words):
    assert cli.main([*words]) == 0, words


def prepare(tmp_path, source, *words):
    fractions = ("source.val_fraction=0.3", "source.test_fraction=0.1")
    path = f"source.path={tmp_path}/raw/{source}"
    output = f"output_dir={tmp_path}/images"
    run("prepare", f"source={source}", path, f"source.size={SIZE}", *fractions, output, *words)


@pytest.mark.slow
def test_prepare_encode_train_inspect(tmp_path, capsys):
    raw = tmp_path / "raw"
    write_annotated(raw / "annotated", count=20)
    for number in range(6):
        write_annotated_clip(raw / "annotated_video", f"v{number}", 8)
    write_co3d(raw / "co3d", {f"apple/{number}": 8 for number in range(8)})
    prepare(tmp_path, "annotated", "source.annotations=[depth,normal,segmentation]")
    prepare(tmp_path, "annotated_video", "source.annotations=[depth]", "source.stride=1")
    prepare(tmp_path, "co3d", "source.annotations=[masks]", "source.num_views=4")
    images, tokens = f"input_dir={tmp_path}/images", f"output_dir={tmp_path}/tokens"
    run("encode", images, tokens, "tokenizer=shapes", "balance=augment",
        "balance.examples_per_task=20", "balance.jitter=all", "balance.vflip=true")  # fmt: skip
    manifests = load_manifests(tmp_path / "tokens", "train", "tokens")
    assert {task: each.images_per_example for task, each in manifests.items()} == KINDS
    for task, manifest in manifests.items():
        assert manifest.balance is not None and manifest.count >= 20
        changed = manifest.balance["jitter"], manifest.balance.get("vflip")
        assert changed == (("input", None) if task == "annotated" else ("none", True))
    # The default sentence is 8 images: two examples of annotated, one of the others.
    config = SentencesConfig(str(tmp_path / "tokens"), shuffle_annotations=True)
    batch = SentenceDataset(config, seed=0)[np.arange(10)]
    assert batch["input_ids"].shape == (10, 8 * TOKENS)
    assert set(batch["images_per_example"].tolist()) == {4, 8}

    train = ["train", "student=tiny", f"data.path={tmp_path}/tokens", "data.batch_size=5"]
    steps = ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
    run(*train, *steps, "data.shuffle_annotations=true", f"output_dir={tmp_path}/run")
    with (tmp_path / "run/metrics.csv").open() as file:
        logged = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {f"{split}/{task}/loss" for split in ("train", "val") for task in KINDS} <= logged

    tokens_dir = f"input_dir={tmp_path}/tokens"
    cli.main(["inspect", tokens_dir, "tokenizer=shapes", f"output_dir={tmp_path}/inspection"])
    report = json.loads((tmp_path / "inspection/inspect.json").read_text())
    assert report["splits"]["train"]["annotated"].keys() >= {"image", "depth", "normal"}
    assert (tmp_path / "inspection/train_video_interleaved.png").exists()
    assert "Traceback" not in capsys.readouterr().err
