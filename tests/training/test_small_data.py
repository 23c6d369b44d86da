"""Training on little data: no validation split, few pairs, and sentences that do not fit."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from delvm import cli
from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, writer
from tests.training.runs import N, V, curve

TRAIN = (
    "train", "student=tiny", "tokenizer=shapes_f8_32", "tokenizer.net.resolution=8",
    "tokenizer.net.channel_mult=[1]", f"tokenizer.net.num_embeddings={V}",
    "tokenizer.net.quantized_embed_dim=8", "student.net.dim=32", "student.net.n_layers=1",
    "student.net.n_heads=2", "student.net.max_seq_len=64", "data.path=tokens",
    "data.batch_size=2", "trainer.max_steps=4", "trainer.val_check_interval=2", "logger=csv",
    "trainer.log_every_n_steps=1", "num_threads=1", "output_dir=run",
    "callbacks.checkpoint.keep_latest_k=9",
)  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def train(capsys):
    """Train with overrides -> (exit code, stderr)."""

    def run(*words):
        capsys.readouterr()
        code = cli.main([*TRAIN, *words])
        return code, capsys.readouterr().err

    return run


def write(split, task, count, images=2):
    codebooks.write_codebook(Path("tokens"), torch.zeros(V, 8), "f" * 16)
    plan = manifest.plan_images(split, task, source="s", seed=0, image_size=8)
    plan.images_per_example = images
    plan = manifest.plan_tokens(plan, count, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16)

    def ids(start, stop):
        yield np.random.default_rng(0).integers(0, V, (stop - start, images, N))

    writer.write_tokens(Path("tokens"), plan, ids)


def validated():
    """Names of the tasks with a validation loss."""
    header = Path("run/metrics.csv").read_text().splitlines()[0].split(",")
    return sorted(name[4:-5] for name in header if re.fullmatch(r"val/\w+/loss", name))


def checkpoints():
    return sorted(path.name for path in Path("run/checkpoints").glob("step=*.ckpt"))


@pytest.mark.slow
def test_without_a_validation_split_checkpoints_are_written_by_step(train):
    write("train", "pose", 20)
    code, err = train()
    assert code == 0, err
    assert err.count("no validation split in data.path=tokens") == 1
    assert checkpoints() == ["step=000002.ckpt", "step=000004.ckpt"]
    assert validated() == [] and len(curve(Path("run"), "train/loss")) == 4
    assert train("resume=auto", "trainer.max_steps=6")[0] == 0


@pytest.mark.slow
def test_task_with_few_validation_pairs_is_validated_on_a_shorter_sentence(train):
    for task, count in (("pose", 20), ("derain", 2)):
        write("train", task, 20)
        write("val", task, count)
    write("val", "clips", 3, images=16)
    code, err = train()
    assert code == 0, err
    assert "too few examples of derain for a sentence" in err
    assert "'clips' is left out, its examples have 16 images and a sentence 8" in err
    assert validated() == ["derain", "pose"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("{}", ["derain", "edges", "pose"]),
        ("{pose:1}", ["edges", "pose"]),
        ("{pose:2,derain:0}", ["edges", "pose"]),
        ("{derain:0}", ["edges", "pose"]),
        ("{derain:0,edges:0}", ["pose"]),
    ],
)
def test_tasks_without_weight_are_left_out_of_validation_too(train, weights, expected):
    for task in ("pose", "derain"):
        write("train", task, 20)
    for task in ("pose", "derain", "edges"):
        write("val", task, 8)
    code, err = train(f"data.task_weights={weights}", "trainer.max_steps=2")
    assert code == 0, err
    assert validated() == expected


# tasks as {name: (examples, images per example)}, and settings that do not fit them
MISFITS = {
    "clips of three": ({"pose": (20, 2), "clips": (20, 3)}, []),
    "clips that are longer": ({"pose": (20, 2), "clips": (20, 11)}, []),
    "few pairs": ({"pose": (20, 2), "derain": (3, 2)}, []),
    "few pairs by images": ({"pose": (20, 2), "derain": (3, 2)}, ["data.images_per_sentence=8"]),
    "one tuple": ({"tuple": (1, 3)}, []),
    "clips alone": ({"clips": (9, 3)}, []),
    "several": ({"pose": (20, 2), "clips": (9, 3), "video": (9, 5)}, []),
    "weights": ({"pose": (9, 2), "a": (9, 3), "b": (9, 1)}, ["data.task_weights={pose:1,a:1}"]),
    "packed longer": ({"pose": (9, 2), "a": (9, 17), "b": (9, 19)}, ["data.packing=true"]),
    "packed": ({"pose": (20, 2), "clips": (20, 9)}, ["data.packing=true"]),
    "context": ({"clips": (20, 3)}, ["data.images_per_sentence=18"]),
    "context of pairs": ({"pose": (40, 2)}, ["data.pairs_per_sentence=12"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MISFITS)
def test_every_remedy_of_a_sentence_that_does_not_fit_works(train, name):
    tasks, words = MISFITS[name]
    for task, (count, images) in tasks.items():
        write("train", task, count, images)
    code, err = train(*words)
    assert code == 2 and err.count("\n") == 1
    remedies = re.search(r": set (.*)", err)[1].split(" or ")
    assert remedies
    for number, remedy in enumerate(remedies):
        (override,) = shlex.split(remedy)
        more = ["trainer.max_steps=1", f"output_dir=run{number}"]
        code, err = train(*words, override, *more)
        assert code == 0, f"{override}: {err}"
