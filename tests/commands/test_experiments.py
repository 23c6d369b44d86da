"""Each shipped experiment trains as its config says, on data of the size that it asks for."""

import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import product
from math import isfinite
from pathlib import Path

import pytest
import torch
from torch import Tensor

from delvm.commands.app import compose
from delvm.commands.build import build
from delvm.commands.help import options
from delvm.data.shards import manifest, writer
from delvm.data.shards.codebook import write_codebook
from delvm.interop.save import save_model
from delvm.models.vqgan import VQGANConfig
from tests.data.shard_makers import make_ids
from tests.training.runs import curve

SHAPES = (
    "source=shapes", "splits=[train,val]", "source.train.segmentation=8", "source.train.pose=8",
    "source.train.derain=8", "source.train.deblur=8", "source.num_val=4",
)  # fmt: skip
# Two steps on a CPU; the discriminator of a tokenizer takes part from the first.
SMALL = (
    "trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1", "data.batch_size=1", "data.num_workers=0",
    "data.num_val_examples=1",
)  # fmt: skip


# One process, bfloat16, sentences of one pair (512 tokens), full width, two of the layers (one of
# LVM's), and no checkpoint: with the optimizer's state it takes gigabytes.
RECIPE = (
    "trainer.precision=bf16-mixed", "trainer.devices=1", "trainer.accumulate_grad_batches=1",
    "strategy=single", "data.images_per_sentence=2", "~callbacks.checkpoint",
    "student.net.n_layers=2",
)  # fmt: skip
# What a CPU without files from elsewhere does not have, and narrow tokenizers of images of 256 px.
CHANGES = {
    "pretrain_80m": RECIPE,
    "pretrain_300m": RECIPE,
    "pretrain_1b": RECIPE,
    "kd_1b_to_300m": RECIPE,
    "lvm_7b": (*RECIPE, "student.net.n_layers=1"),
    "tokenizer_f16_8192_ema": ("tokenizer.net.hidden_channels=32",),
    "tokenizer_f16_8192_taming": (
        "module.perceptual_loss=ms_ssim",
        "tokenizer.net.hidden_channels=32",
    ),
}
TEACHERS = {
    "demo_student": ("experiment=demo_teacher",),
    "distill_student": ("experiment=distill_teacher",),
    "kd_1b_to_300m": ("experiment=pretrain_1b", "student.net.n_layers=2"),
    "student_shapes_64_distilled": ("experiment=teacher_shapes_64",),
}
FINGERPRINT = "f" * 16


def write_tokens(root: Path, tokenizer: VQGANConfig, tasks: Iterable[str]) -> Tensor:
    """Token shards of random ids, and the codebook (V, d) next to them."""
    torch.manual_seed(0)
    codebook = torch.randn(tokenizer.num_embeddings, tokenizer.quantized_embed_dim)
    write_codebook(root, codebook, FINGERPRINT)
    for split, task in product(("train", "val"), tasks):
        images = manifest.plan_images(
            split, task, source="s", seed=0, image_size=tokenizer.resolution
        )
        plan = manifest.plan_tokens(
            images,
            8,
            tokens_per_image=tokenizer.tokens_per_image,
            vocab_size=len(codebook),
            fingerprint=FINGERPRINT,
        )
        ids = make_ids(plan)
        writer.write_tokens(root, plan, lambda start, stop: [ids[start:stop]])  # noqa: B023
    return codebook


@pytest.mark.slow
@pytest.mark.parametrize("name", options("train", "experiment"))
def test_experiment_trains_two_steps(name, delvm, tmp_path):
    cfg = compose("train", [f"experiment={name}"])
    words = [f"experiment={name}", *SMALL, *CHANGES.get(name, ()), "output_dir=run"]
    with torch.device("meta"):
        tokenizer = build(cfg.tokenizer.net, "tokenizer").config
    if cfg.module._target_.endswith("TokenizerModule"):
        size = f"source.size={tokenizer.resolution}"
        assert delvm("prepare", *SHAPES, size, "output_dir=pairs")[0] == 0
        words += ["data.path=pairs", *(["module.disc_start=0"] if cfg.module.disc_weight else [])]
    else:
        codebook = write_tokens(tmp_path / "tokens", tokenizer, cfg.data.task_weights or ["derain"])
        words += ["data.path=tokens"]
    if cfg.module._target_.endswith("DistillationModule"):
        teacher = build(compose("train", [*TEACHERS[name]]).student.net, "student")
        teacher.load_codebook(codebook, FINGERPRINT)
        save_model(teacher, tmp_path / "teacher")
        words += ["teacher.checkpoint=teacher"]
    if cfg.init_from:
        start = build(cfg.student.net, "student")
        start.load_codebook(codebook, FINGERPRINT)
        save_model(start, tmp_path / "start")
        words += ["init_from=start"]
    # In a process of its own, whose memory (up to 13 GiB) is free again for the tests that follow.
    command = [sys.executable, "-m", "delvm", "train", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "run/checkpoints/step=000002.ckpt").exists()
    assert written == ("~callbacks.checkpoint" not in words)
    (loss,) = curve(tmp_path / "run", "val/loss")
    assert isfinite(loss)
    shutil.rmtree(tmp_path)  # pytest would keep gigabytes of weights of its last three sessions
