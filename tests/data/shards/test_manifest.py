"""Manifests and the codebook: round trips, checks, and messages."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from delvm.data.shards.codebook import read_codebook, write_codebook
from delvm.data.shards.manifest import Manifest, load_manifests
from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from tests.data.shard_makers import (
    token_plan,
    write,
    write_ids,
)


def test_manifest_round_trip(tmp_path):
    plan = token_plan(3)
    plan.save(tmp_path / "manifest.json")
    assert Manifest.load(tmp_path / "manifest.json") == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, r"unknown keys \['extra'\]"),
        ({"seed": None, "-": "seed"}, r"missing keys \['seed'\]"),
        ({"count": 4}, "count 4 is not the sum"),
        ({"count": "5"}, "count is '5', not of type int"),
        ({"kind": "clips"}, "kind is 'clips'"),
        ({"kind": "tokens"}, "tokens_per_image is None"),
        ({"shards": [{"file": "../../a.tar", "count": 5}]}, r"'../../a.tar' is not NAME.tar"),
        ({"shards": [{"file": "pipe:touch x.tar", "count": 5}]}, "is not NAME.tar"),
        ({"shards": [{"file": "a.tar", "count": -5}]}, "-5 is not a number of examples"),
        ({"shards": [{"file": "a.tar", "count": 10**12}]}, "000000 is not a number of examples"),
        ({"shards": [{"file": "a.tar"}]}, "is not {file, count}"),
    ],
)
def test_invalid_manifest_is_refused(tmp_path, change, message):
    values = asdict(write(tmp_path)) | change
    values.pop(values.pop("-", None), None)
    (tmp_path / "train/derain/manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load_manifests(tmp_path, "train", "images")


def test_missing_or_other_shards_name_the_command_to_run(tmp_path):
    with pytest.raises(UserError, match=r"no images in .*run `delvm prepare output_dir="):
        load_manifests(tmp_path, "train", "images")
    with pytest.raises(UserError, match=r"no tokens in .*run `delvm encode output_dir="):
        load_manifests(tmp_path, "train", "tokens")
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match="none of train, val, test: give .* `delvm prepare` wrote"):
        load_manifests(tmp_path, "train", "images")
    write(tmp_path)
    with pytest.raises(UserError, match="holds images, not tokens: give the directory"):
        load_manifests(tmp_path, "train", "tokens")
    with pytest.raises(UserError, match=r"no task 'pose' in .*, only \['derain'\]"):
        list(read_examples(tmp_path, "train", "pose"))
    (tmp_path / "train/derain").rename(tmp_path / "train/deblur")
    with pytest.raises(UserError, match="deblur holds train/derain"):
        load_manifests(tmp_path, "train", "images")


def test_tasks_of_two_tokenizers_do_not_mix(tmp_path):
    write_ids(tmp_path, token_plan(3))
    write_ids(tmp_path, replace(token_plan(3, task="pose"), fingerprint="abc", vocab_size=50))
    with pytest.raises(UserError, match="vocab_size differs between tasks"):
        load_manifests(tmp_path, "train", "tokens")


def test_codebook_round_trip_and_mismatch(tmp_path):
    codes = torch.randn(10, 3, dtype=torch.float64)
    write_codebook(tmp_path, codes, "abc")
    found, fingerprint = read_codebook(tmp_path)
    assert fingerprint == "abc" and torch.equal(found, codes.float())
    with pytest.raises(UserError, match="tokenizer abc, this one is def: set overwrite=true"):
        write_codebook(tmp_path, codes, "def")
    assert read_codebook(tmp_path)[1] == "abc"
    write_codebook(tmp_path, codes, "def", overwrite=True)
    assert read_codebook(tmp_path)[1] == "def"
    write_ids(tmp_path / "b", token_plan(3))
    write_codebook(tmp_path / "b", codes, "def", overwrite=True)
    with pytest.raises(UserError, match="encoded by tokenizer abc, .* the codebook of def"):
        load_manifests(tmp_path / "b", "train", "tokens")
    (tmp_path / "codebook.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="codebook .* cannot be read"):
        read_codebook(tmp_path)
    with pytest.raises(UserError, match="codebook not found: .*run `delvm encode"):
        read_codebook(tmp_path / "c")
