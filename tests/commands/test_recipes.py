"""The recipes of DeLVM and LVM, composed and compared with the references' configs key by key."""

import math
from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from delvm.commands.app import compose
from delvm.commands.build import build
from delvm.training.optim import warmup_cosine
from tests.commands.recipe_facts import Fact, recipes

pytestmark = pytest.mark.slow

TOKENS_PER_IMAGE = 256
RECIPES = recipes()


def images(cfg: DictConfig) -> int:
    return int(cfg.data.images_per_sentence or 2 * cfg.data.pairs_per_sentence)


def ranks(cfg: DictConfig) -> int:
    return int(cfg.trainer.devices * cfg.trainer.num_nodes)


def schedule_steps(cfg: DictConfig) -> int:
    return int(cfg.scheduler.decay_steps or cfg.trainer.max_steps)


def learning_rate(cfg: DictConfig, step: int) -> float:
    scheduler = cfg.scheduler
    fractions = scheduler.warmup_ratio, scheduler.min_lr_ratio
    return float(cfg.optimizer.lr * warmup_cosine(step, schedule_steps(cfg), *fractions))


def ffn_dim(cfg: DictConfig) -> int:
    with torch.device("meta"):
        return int(build(cfg.student.net, "student").config.resolved_ffn_dim)


def mlp_ratio(cfg: DictConfig) -> float:
    """8/3, where rounding that up to a multiple of 256 gives the MLP's width."""
    width = 256 * math.ceil(cfg.student.net.dim * 8 / 3 / 256)
    return 8 / 3 if ffn_dim(cfg) == width else ffn_dim(cfg) / cfg.student.net.dim


# What a reference has as one number and ours as several keys.
DERIVED: dict[str, Callable[[DictConfig], Any]] = {
    "tokens per sentence": lambda cfg: images(cfg) * TOKENS_PER_IMAGE,
    "ranks": ranks,
    "sentences per batch on all ranks": lambda cfg: cfg.data.batch_size * ranks(cfg),
    "tokens per step": lambda cfg: (
        images(cfg) * TOKENS_PER_IMAGE * cfg.data.batch_size
        * cfg.trainer.accumulate_grad_batches * ranks(cfg)
    ),
    "batches": lambda cfg: cfg.trainer.max_steps * cfg.trainer.accumulate_grad_batches,
    "steps per validation": lambda cfg: (
        cfg.trainer.val_check_interval / cfg.trainer.accumulate_grad_batches
    ),
    "steps of the schedule": schedule_steps,
    "warmup steps": lambda cfg: round(cfg.scheduler.warmup_ratio * schedule_steps(cfg)),
    "first learning rate": lambda cfg: learning_rate(cfg, 0),
    "lowest learning rate": lambda cfg: learning_rate(cfg, schedule_steps(cfg)),
    "mlp ratio before rounding to 256": mlp_ratio,
}  # fmt: skip


def our_value(cfg: DictConfig, name: str) -> Any:
    if name in DERIVED:
        return DERIVED[name](cfg)
    parent, _, leaf = name.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    assert leaf.isdigit() or leaf in node, f"no key {name}"
    value = OmegaConf.select(cfg, name)
    return value.value if isinstance(value, Enum) else value


@pytest.mark.parametrize("name", RECIPES)
def test_each_number_is_the_references_or_says_why_not(name):
    cfg = compose("train", [f"experiment={name}"])
    for fact in RECIPES[name]:
        if not fact.ours:
            assert fact.why, fact
            continue
        expected = fact.our_value if fact.why else fact.value
        close = isinstance(expected, float)
        assert our_value(cfg, fact.ours) == (pytest.approx(expected) if close else expected), fact
        assert not fact.why or expected != fact.value, f"{fact}: does not differ"


def test_facts_are_of_distinct_keys():
    for name, facts in RECIPES.items():
        pairs = [(fact.key, fact.ours) for fact in facts]
        assert len(pairs) == len(set(pairs)), name
        assert all(isinstance(fact, Fact) for fact in facts)


def test_the_teacher_is_the_1b_recipes():
    teacher, student = (
        compose("train", [f"experiment={name}"]) for name in ("pretrain_1b", "kd_1b_to_300m")
    )
    assert student.teacher.checkpoint == teacher.output_dir
    assert student.data.path == teacher.data.path
    assert student.module._target_.endswith("DistillationModule")


@pytest.mark.parametrize("step", [0, 100, 223, 224, 225, 20000, 39999])
def test_learning_rate_is_delvms(step):
    """224 steps of linear warmup, then torch's CosineAnnealingLR over the others."""
    cosine = 0.5 * (1 + math.cos(math.pi * (step - 224) / (40000 - 224)))
    expected = 1.5e-4 * (step + 1) / 224 if step < 224 else 1.5e-5 + 1.35e-4 * cosine
    cfg = compose("train", ["experiment=pretrain_300m"])
    assert learning_rate(cfg, step) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("step", [8000, 50000, 99999, 288000])
def test_learning_rate_is_lvms(step):
    """optax.warmup_cosine_decay_schedule, of updates."""
    cosine = 0.5 * (1 + math.cos(math.pi * (step - 8000) / (288000 - 8000)))
    cfg = compose("train", ["experiment=lvm_7b"])
    assert learning_rate(cfg, step) == pytest.approx(3e-5 + 1.2e-4 * cosine, rel=1e-9)
    # while it rises, ours is one step ahead
    assert learning_rate(cfg, 3999) == pytest.approx(1.5e-4 * 4000 / 8000, rel=1e-6)


def decoder_parameters(dim: int, layers: int, ffn: int, vocab: int, *, attention_bias: bool) -> int:
    """Of a pre-norm decoder with SwiGLU, two RMSNorms per block, one at the end, and the head."""
    attention = 4 * dim * dim + (4 * dim if attention_bias else 0)
    return layers * (attention + 3 * dim * ffn + 2 * dim) + dim + vocab * dim


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pretrain_80m", 256 * 512 + decoder_parameters(512, 22, 1536, 8192, attention_bias=True)),
        (
            "pretrain_300m",
            256 * 1024 + decoder_parameters(1024, 22, 2816, 8192, attention_bias=True),
        ),
        (
            "pretrain_1b",
            256 * 2048 + decoder_parameters(2048, 22, 5632, 8192, attention_bias=True),
        ),
        # LVM's 7B is 6.54 billion: LLaMA's 6.74 have 32,000 ids
        (
            "lvm_7b",
            8292 * 4096 + decoder_parameters(4096, 32, 11008, 8292, attention_bias=False),
        ),
    ],
)
def test_number_of_parameters(name, expected):
    with torch.device("meta"):
        net = build(compose("train", [f"experiment={name}"]).student.net, "student")
    assert net.parameter_count() == expected
    named = {"pretrain_80m": 79, "pretrain_300m": 291, "pretrain_1b": 1148, "lvm_7b": 6544}
    assert round(expected / 1e6) == named[name]


def test_augmentation_is_delvms():
    """The ranges of data_generation/vqgan/load.py."""
    balance = compose("encode", ["balance=delvm"]).balance
    assert (balance.mode.value, balance.max_degrees) == ("augment", 180)
    assert (balance.hflip, balance.vflip) == (True, True)
    assert balance.crop_area == [0.08, 1] and balance.crop_ratio == [3 / 4, 4 / 3]
