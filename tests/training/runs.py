"""Small training runs, for tests: their configs, and their curves."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

import delvm
from delvm.commands.instantiate import build_run
from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, writer
from delvm.models.vqgan import VQGANConfig

N, V = 4, 16  # tokens per image, codes
TOKENIZER = VQGANConfig(16, 3, 32, [1, 1], 1, [], True, 32, 32, 8, patch_size=2)
COMMON = ("logger=csv", "trainer.precision=32-true", "trainer.log_every_n_steps=1", "num_threads=1")


def write_ids(root: Path) -> None:
    """Token shards of a task that can be learned: the target is the input, one id further."""
    torch.manual_seed(0)
    codebooks.write_codebook(root, torch.randn(V, 8), "f" * 16)
    for split, count in (("train", 256), ("val", 8)):
        plan = manifest.plan_tokens(
            manifest.plan_images(split, "pose", source="s", seed=0, image_size=8),
            count, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16,
        )  # fmt: skip

        def ids(start: int, stop: int) -> Iterator[np.ndarray]:
            inputs = np.random.default_rng(start).integers(0, V, (stop - start, 1, N))
            yield np.concatenate((inputs, (inputs + 1) % V), axis=1)

        writer.write_tokens(root, plan, ids)


def student_config(tokens: Path, steps: int = 3, *overrides: str) -> DictConfig:
    """A student of two layers on the shards of `write_ids`."""
    given = any(each.startswith("scheduler=") for each in overrides)
    cfg: DictConfig = delvm.compose(
        "train",
        [
            *COMMON,
            "tokenizer=shapes_f8_32",
            "tokenizer.net.resolution=8",
            "tokenizer.net.channel_mult=[1]",
            f"tokenizer.net.num_embeddings={V}",
            "tokenizer.net.quantized_embed_dim=8",
            "student=tiny",
            "student.net.dim=32",
            "student.net.n_layers=2",
            "student.net.n_heads=2",
            "student.net.max_seq_len=32",
            "student.net.init=gpt2",
            "module.input_weight=0.0",
            f"data.path={tokens}",
            "data.pairs_per_sentence=2",
            "data.batch_size=8",
            "optimizer.lr=1e-2",
            *(() if given else ("scheduler.warmup_ratio=0.1",)),
            f"trainer.max_steps={steps}",
            f"trainer.val_check_interval={steps}",
            *overrides,
        ],
    )
    return cfg


def tokenizer_config(images: Path, steps: int = 30, *overrides: str) -> DictConfig:
    """A tokenizer of the architecture `TOKENIZER` on images of 16 px."""
    net = "{resolution: 16, hidden_channels: 32, channel_mult: [1, 1], z_channels: 32}"
    cfg: DictConfig = delvm.compose(
        "train",
        [
            *COMMON,
            "module=tokenizer",
            "tokenizer=shapes_f8_32",
            f"tokenizer.net={net}",
            "tokenizer.net.num_embeddings=32",
            "tokenizer.net.quantized_embed_dim=8",
            "tokenizer.net.patch_size=2",
            "module.perceptual_weight=0.0",
            "module.dead_code_after=10",
            "data=images",
            f"data.path={images}",
            "data.batch_size=8",
            "optimizer.lr=2e-3",
            "scheduler.warmup_ratio=0.1",
            f"trainer.max_steps={steps}",
            f"trainer.val_check_interval={steps}",
            *overrides,
        ],
    )
    return cfg


def train(cfg: DictConfig, output_dir: Path) -> Path:
    """Train what a config describes; the directory of the exported weights."""
    cfg.output_dir = str(output_dir)
    exported = build_run(cfg).fit()
    assert exported is not None
    return exported


def curve(output_dir: Path, name: str) -> list[float]:
    """The values of a metric over a run."""
    with (output_dir / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
