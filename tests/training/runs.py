"""Small training runs, for tests: their configs, and their curves."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from delvm.data.datasets.images import ImagesConfig
from delvm.data.datasets.sentences import SentencesConfig
from delvm.data.shards import manifest, writer
from delvm.models.transformer import Init, TransformerConfig
from delvm.models.vqgan import VQGANConfig
from delvm.training.config import (
    OptimConfig,
    StudentConfig,
    StudentModule,
    TokenizerConfig,
    TokenizerModule,
    TrainConfig,
    TrainerConfig,
)

N, V = 4, 16  # tokens a picture, codes
TOKENIZER = VQGANConfig(16, 3, 32, [1, 1], 1, [], True, 32, 32, 8, patch_size=2)


def write_ids(root: Path) -> None:
    """Token shards of a task that can be learnt: the target is the input, one id further."""
    torch.manual_seed(0)
    manifest.write_codebook(root, torch.randn(V, 8), "f" * 16)
    for split, count in (("train", 256), ("val", 8)):
        plan = manifest.plan_tokens(
            manifest.plan_images(split, "pose", source="s", seed=0, image_size=8),
            count, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16,
        )  # fmt: skip

        def ids(start: int, stop: int) -> Iterator[np.ndarray]:
            inputs = np.random.default_rng(start).integers(0, V, (stop - start, 1, N))
            yield np.concatenate((inputs, (inputs + 1) % V), axis=1)

        writer.write_tokens(root, plan, ids)


def student_config(tokens: Path, steps: int = 3, **changes: object) -> TrainConfig:
    net = TransformerConfig(V, 32, 2, 2, max_seq_len=32, codebook_dim=8, init=Init.gpt2)
    values = {
        "module": StudentModule(input_weight=0.0),
        "student": StudentConfig(net),
        "data": SentencesConfig(path=str(tokens), pairs_per_sentence=2, batch_size=8),
        "optim": OptimConfig(lr=1e-2, warmup=0.1),
        "trainer": TrainerConfig(
            steps, accelerator="cpu", precision="32-true", val_every=steps, log_every=1, threads=1
        ),
    }
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]


def tokenizer_config(pictures, steps=30, net=TOKENIZER, **module) -> TrainConfig:
    return TrainConfig(
        module=TokenizerModule(**({"perceptual": 0.0, "revive_after": 10} | module)),
        tokenizer=TokenizerConfig(net),
        data=ImagesConfig(path=str(pictures), batch_size=8),
        optim=OptimConfig(lr=2e-3, warmup=0.1),
        trainer=TrainerConfig(
            steps, accelerator="cpu", precision="32-true", val_every=steps, log_every=1, threads=1
        ),
    )


def curve(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
