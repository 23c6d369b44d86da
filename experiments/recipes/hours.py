"""The table of docs/reproduce.md: estimated hours of each stage on 8 GPUs.

python -m experiments.recipes.hours [peak=312] [mfu=0.4] [encode_mfu=0.3]
"""

import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import delvm
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN

GPUS = 8
IMAGES = 520e6  # DeLVM's mixture, experiments/scale
LVM_TOKENS = 420e9
TOKENS_PER_IMAGE = 256


@cache
def recipe(name: str) -> Any:
    """The composed config of an experiment."""
    return delvm.compose("train", [f"experiment={name}"])


def net(settings: Any, kind: type) -> Any:
    """A network without storage."""
    fields = {key: value for key, value in settings.items() if key != "_target_"}
    with torch.device("meta"):
        return kind.from_settings(**fields)  # type: ignore[attr-defined]


def encode_flops() -> float:
    """FLOPs of the tokenizer's encoder for an image of 256 px, counted."""
    tokenizer = net(delvm.compose("train", ["tokenizer=f16_8192"]).tokenizer.net, VQGAN)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        tokenizer.encode_features(torch.empty(1, 3, 256, 256, device="meta"))
    return float(counter.get_total_flops())


def step_tokens(cfg: Any) -> int:
    """Tokens of a step on all GPUs."""
    images = cfg.data.images_per_sentence or 2 * cfg.data.pairs_per_sentence
    batches = cfg.trainer.accumulate_grad_batches * cfg.trainer.devices * cfg.trainer.num_nodes
    return int(images * TOKENS_PER_IMAGE * cfg.data.batch_size * batches)


def token_flops(name: str) -> float:
    """FLOPs of a recipe per token: forward and backward, recomputed blocks, a teacher's forward."""
    cfg = recipe(name)
    images = cfg.data.images_per_sentence or 2 * cfg.data.pairs_per_sentence
    length = images * TOKENS_PER_IMAGE
    flops = net(cfg.student.net, Transformer).flops_per_token(length)
    if cfg.student.net.activation_checkpointing:
        flops *= 4 / 3
    if name.startswith("kd_"):
        teacher = recipe("pretrain_1b").student.net
        flops += net(teacher, Transformer).flops_per_token(length) / 3
    return float(flops)


def rows() -> Iterator[tuple[str, float, float, bool]]:
    """Stage, number of items, FLOPs per item, and whether the items are images to encode."""
    yield "encode DeLVM's mixture", IMAGES, encode_flops(), True
    for name in ("pretrain_80m", "pretrain_300m", "pretrain_1b", "kd_1b_to_300m", "lvm_7b"):
        cfg = recipe(name)
        tokens = float(cfg.trainer.max_steps * step_tokens(cfg))
        yield f"`{name}`", tokens, token_flops(name), False
    yield "`lvm_7b`, LVM's 420B tokens", LVM_TOKENS, token_flops("lvm_7b"), False


def table(peak: float = 312, mfu: float = 0.4, encode_mfu: float = 0.3) -> Iterator[str]:
    """The lines of the table, in Markdown.

    Args:
        peak: TFLOP/s of a GPU in 16 bits.
        mfu: fraction of it that training reaches.
        encode_mfu: fraction of it that the tokenizer's convolutions reach.
    """
    yield "| stage | images or tokens | GFLOP each | estimated hours on 8 GPUs |"
    yield "|---|--:|--:|--:|"
    for name, count, flops, encode in rows():
        rate = GPUS * peak * 1e12 * (encode_mfu if encode else mfu)
        items = f"{count / 1e6:,.0f}M images" if encode else f"{count / 1e9:,.1f}B tokens"
        hours = count * flops / rate / 3600
        shown = f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"
        yield f"| {name} | {items} | {flops / 1e9:,.1f} | {shown} |"


if __name__ == "__main__":
    given = {key: float(value) for key, value in (word.split("=", 1) for word in sys.argv[1:])}
    print("\n".join(table(**given)))
