"""Files written by the version before the renames: they load, with the same outputs.

tests/data/legacy was written by that version, and the expected values below were computed with it.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delvm import cli, legacy
from delvm.data.datasets.images import ImageDataset, ImagesConfig
from delvm.data.datasets.sentences import (
    SentenceDataset,
    SentencesConfig,
    validation_sentences,
)
from delvm.data.shards.codebook import read_codebook
from delvm.data.shards.manifest import Manifest
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_student, load_tokenizer, read_metadata

LEGACY = Path(__file__).parent / "data" / "legacy"
CHECKPOINT = "checkpoints/step=000004.ckpt"
FINGERPRINT = "44af42a1dc622142"  # of the tokenizer in LEGACY


def pixels(size: int) -> torch.Tensor:
    return torch.linspace(0, 1, 3 * size * size).view(1, 3, size, size)


def logits(student: torch.nn.Module, vocab_size: int) -> torch.Tensor:
    """The first logits at the last of 24 tokens."""
    with torch.no_grad():
        found: torch.Tensor = student((torch.arange(24) * 7 % vocab_size)[None])[0, -1, :4]
    return found


def sha(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


# ---------------------------------------------------------------- the tables


def table(name: str) -> dict[str, Any]:
    found: dict[str, Any] = getattr(legacy, name)
    return found


# Of names, that is without the values which old manifests lack.
TABLES = [name for name in vars(legacy) if name.isupper() and name != "SOURCE_DEFAULTS"]


@pytest.mark.parametrize("name", TABLES)
def test_no_new_name_is_an_old_name(name):
    tables = table(name).values() if name.endswith("_VALUES") else [table(name)]
    for each in tables:
        assert not set(each) & set(each.values())


def test_rename_keys_and_restore_keys_are_inverse():
    keys, values = {"width": "dim", "kind": "mode"}, {"mode": {"own": "learned"}}
    old = {"width": 8, "kind": "own", "other": [1]}
    new = {"dim": 8, "mode": "learned", "other": [1]}
    assert legacy.rename_keys(old, keys, values) == new
    assert legacy.rename_keys(new, keys, values) == new
    assert legacy.restore_keys(new, keys, values) == old
    assert legacy.rename_keys({"kind": [1]}, keys, values) == {"mode": [1]}  # not hashable


def test_rename_keys_keeps_an_old_key_next_to_its_new_name():
    """Readers refuse unknown keys, so that neither of two values is dropped silently."""
    assert legacy.rename_keys({"a": 1, "b": 2}, {"a": "b"}) == {"a": 1, "b": 2}
    assert legacy.rename_keys({"a": 1, "c": 2}, {"a": "b", "c": "b"}) == {"b": 1, "c": 2}


# ---------------------------------------------------------------- models


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "size", "expected_fingerprint", "ids", "pixel"),
    [
        (
            str(LEGACY / "tokenizer"),
            16,
            FINGERPRINT,
            [2, 20, 14, 3, 6, 10, 14, 17],
            [-0.3528290390968323, 0.3167438805103302, -0.3294409513473511],
        ),
        (
            str(LEGACY / "tokenizer" / CHECKPOINT),
            16,
            FINGERPRINT,
            [2, 20, 14, 3, 6, 10, 14, 17],
            [-0.3528290390968323, 0.3167438805103302, -0.3294409513473511],
        ),
        (
            "shapes",
            64,
            "d6a8620e8d7c2170",
            [469, 23, 583, 583, 583, 583, 583, 433],
            [0.06110304221510887, 0.32846081256866455, 0.6354585886001587],
        ),
    ],
    ids=["folder", "checkpoint", "shipped"],
)
def test_tokenizer_loads(path, size, expected_fingerprint, ids, pixel):
    tokenizer = load_tokenizer(path)
    assert fingerprint(tokenizer) == expected_fingerprint
    found = tokenizer.encode(pixels(size))
    assert found[0, :8].tolist() == ids
    decoded = tokenizer.decode(found, clamp=False)[0, :, 3, 5]
    torch.testing.assert_close(decoded, torch.tensor(pixel), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("path", "expected_fingerprint", "expected"),
    [
        (
            str(LEGACY / "student"),
            FINGERPRINT,
            [0.02875177375972271, -0.0008976697572506964, -0.035425592213869, 0.001133024226874113],
        ),
        (
            str(LEGACY / "student" / CHECKPOINT),
            FINGERPRINT,
            [0.02875177375972271, -0.0008976697572506964, -0.035425592213869, 0.001133024226874113],
        ),
        (
            str(LEGACY / "llama"),
            FINGERPRINT,
            [0.02875177375972271, -0.0008976697572506964, -0.035425592213869, 0.001133024226874113],
        ),
        (
            str(LEGACY / "sharded" / CHECKPOINT),
            FINGERPRINT,
            [0.029226528480648994, 8.531837011105e-06, -0.034810602664947, 0.0006304171402007341],
        ),
        (
            str(LEGACY / "sweep" / "seed=1"),
            FINGERPRINT,
            [-0.007697745226323605, -0.02834764309227467, -0.01026168651878, 0.003674496663734317],
        ),
        (
            "shapes",
            "d6a8620e8d7c2170",
            [0.4132540822029114, -0.31490349769592285, -0.36255770921707153, 0.44213080406188965],
        ),
    ],
    ids=["folder", "checkpoint", "llama", "sharded_checkpoint", "learned_embedding", "shipped"],
)
def test_student_loads(path, expected_fingerprint, expected):
    student = load_student(path)
    assert student.tokenizer_fingerprint == expected_fingerprint
    found = logits(student, student.config.vocab_size)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_checkpoint_metadata_has_new_names():
    found = read_metadata(LEGACY / "tokenizer" / CHECKPOINT)
    buffers = {name for name in found["state_dict"] if name.startswith("codebook.")}
    assert buffers == set(legacy.CHECKPOINT_STATE.values())
    assert buffers <= found["current_model_state"].keys()
    assert not found["callbacks"].keys() & legacy.CHECKPOINT_CALLBACKS.keys()
    assert found["global_step"] == 4


# ---------------------------------------------------------------- shards


def test_token_manifests_have_the_fingerprint_of_their_tokenizer():
    expected = fingerprint(load_tokenizer(LEGACY / "tokenizer"))
    files = sorted((LEGACY / "tokens").rglob("manifest.json"))
    assert len(files) == 9
    assert {Manifest.load(file).fingerprint for file in files} == {expected}
    codebook, recorded = read_codebook(LEGACY / "tokens")
    assert recorded == expected
    assert torch.equal(codebook, load_tokenizer(LEGACY / "tokenizer").codebook)
    assert load_student(LEGACY / "student").tokenizer_fingerprint == expected


def test_shards_of_sources_record_how_images_were_made_square():
    """Before `resize` was a setting, every source but `shapes` rounded."""
    old = {"shard_size": 5, "val": 0.1}
    assert legacy.upgrade_source_settings("gopro", old)["resize"] == "rounded"
    assert legacy.upgrade_source_settings("gopro", old | {"resize": "pad"})["resize"] == "pad"
    assert "resize" not in legacy.upgrade_source_settings("shapes", {"shard_size": 5})
    manifests = map(Manifest.load, (LEGACY / "tokens").rglob("manifest.json"))
    assert {manifest.resize for manifest in manifests} == {""}


def test_token_shards_load():
    config = SentencesConfig(path=str(LEGACY / "tokens"), pairs_per_sentence=2)
    batch = SentenceDataset(config, seed=1)[np.arange(16, 32)]
    assert batch["input_ids"].shape == (16, 64) and batch["next_index"] == 32
    assert batch["input_ids"][0, :8].tolist() == [20, 20, 26, 17, 30, 25, 11, 27]
    assert sha(batch["input_ids"].numpy()) == "f8dbcfb3eed1db42"
    assert batch["task"].tolist() == [0, 1, 2, 3] * 4


def test_validation_shards_load():
    config = SentencesConfig(path=str(LEGACY / "tokens"), pairs_per_sentence=2, num_val_examples=4)
    val = validation_sentences(config)
    assert val.tasks == ["colourisation", "deblur", "derain", "pose", "segmentation"]
    assert sha(val.input_ids.numpy()) == "5a5acf1094c3e8af"
    assert val.task.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_image_shards_load():
    batch = ImageDataset(ImagesConfig(path=str(LEGACY / "pairs")), seed=3)[np.arange(8)]
    assert batch["pixels"].dtype == torch.uint8 and batch["pixels"].shape == (8, 3, 16, 16)
    assert sha(batch["pixels"].numpy()) == "acb8e336b253c172"


# ---------------------------------------------------------------- runs


def test_runs_lists_old_run_folders(tmp_path, capsys):
    shutil.copytree(LEGACY / "sweep", tmp_path / "sweep")
    code = cli.main(["runs", f"input_dir={tmp_path / 'sweep'}", f"output={tmp_path / 'runs.csv'}"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    header, *rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["seed=1", "seed=2"]
    assert "best val/loss" in header and "2 runs" in out


# ---------------------------------------------------------------- resume

TINY_TOKENIZER = [
    "tokenizer=shapes_f8_32",
    "tokenizer.net.resolution=16",
    "tokenizer.net.patch_size=4",
    "tokenizer.net.hidden_channels=32",
    "tokenizer.net.channel_mult=[1]",
    "tokenizer.net.z_channels=32",
    "tokenizer.net.num_embeddings=32",
    "tokenizer.net.quantized_embed_dim=8",
]
TINY_STUDENT = [
    "student=tiny",
    "student.net.dim=32",
    "student.net.n_layers=1",
    "student.net.n_heads=2",
    "student.net.ffn_dim=32",
    "student.net.max_seq_len=128",
    "student.net.vocab_size=32",
    "student.net.codebook_dim=8",
]
TRAINER = [
    "trainer.precision=32-true",
    "trainer.log_every_n_steps=1",
    "data.batch_size=4",
    "resume=auto",
]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The current folder, with the data and the runs of the old version."""
    for name in ("tokens", "pairs", "student", "tokenizer", "sharded"):
        shutil.copytree(LEGACY / name, tmp_path / name)
    for name in ("student", "tokenizer", "sharded"):
        (tmp_path / name / "checkpoints" / "last.ckpt").symlink_to("step=000004.ckpt")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "lines", "expected"),
    [
        (
            "student",
            # Of metrics.csv: a header, four steps, a validation; then a row of the learning rate
            # for each step too.
            15,
            [0.03201289102435112, -0.0074565527029335, -0.032613202929496, -0.0003434854734223336],
        ),
        (
            "sharded",  # written by two processes; its metrics.csv is not there
            10,
            [0.033125124871730804, -0.006977955345064, -0.032365571707487, -0.0008471364271827042],
        ),
    ],
)
def test_student_run_resumes(runs, run, lines, expected):
    """Stopped at step 4 of 8, it ends as the old version ended it, in one process."""
    words = [*TINY_TOKENIZER, *TINY_STUDENT, *TRAINER, "data.path=tokens", "seed=1"]
    words += [
        "data.pairs_per_sentence=2",
        "data.num_val_examples=4",
        "trainer.val_check_interval=4",
    ]
    assert cli.main(["train", *words, "trainer.max_steps=8", f"output_dir={run}"]) == 0
    found = logits(load_student(run), 32)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    assert (runs / run / "metrics.csv").read_text().count("\n") == lines


@pytest.mark.slow
def test_tokenizer_run_resumes(runs):
    """Stopped at step 4, two more steps end as in the old version: codebook and average too."""
    words = [*TINY_TOKENIZER, *TRAINER, "module=tokenizer", "data=images", "data.path=pairs"]
    words += ["callbacks=[default,weight_ema]", "callbacks.weight_ema.decay=0.9", "seed=3"]
    words += ["module.dead_code_after=50", "trainer.val_check_interval=2"]
    assert cli.main(["train", *words, "trainer.max_steps=6", "output_dir=tokenizer"]) == 0
    tokenizer = load_tokenizer("tokenizer")
    assert tokenizer.encode(pixels(16))[0, :8].tolist() == [2, 20, 14, 3, 6, 10, 26, 17]
    bias = tokenizer.post_quant_conv.bias
    assert isinstance(bias, torch.Tensor)
    expected_bias = [-0.2919204533100128, 0.0009029085049405694, -0.209052681922, 0.22857336699962]
    torch.testing.assert_close(bias[:4], torch.tensor(expected_bias), atol=1e-6, rtol=1e-5)
    expected_codes = torch.tensor(
        [[0.14887034893035, -0.13517671823], [0.03359176218, 0.0395819321]]
    )
    torch.testing.assert_close(tokenizer.codebook[:2, :2], expected_codes, atol=1e-6, rtol=1e-5)
