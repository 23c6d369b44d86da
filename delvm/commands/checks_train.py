"""Faults across the groups of a training run, and between it, its data and its device."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from delvm.commands.checks_devices import device_faults
from delvm.configs.verbs import require_min
from delvm.data.datasets.images import ImagesConfig
from delvm.data.datasets.sampler import mixture_weights
from delvm.data.datasets.sentences import SentencesConfig, examples_per_sentence
from delvm.data.shards.manifest import Manifest, load_manifests
from delvm.errors import UserError, did_you_mean
from delvm.interop.load import resolve
from delvm.models.transformer import InputEmbedding, Transformer
from delvm.models.vqgan import VQGAN
from delvm.storage import as_path
from delvm.training.config import (
    WANTED_VGG,
    DistillationModule,
    Perceptual,
    StudentModule,
    TokenizerModule,
    TrainConfig,
)

PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed")
ACCELERATORS = ("cpu", "gpu", "auto")


def at_least(least: float, values: dict[str, float | None]) -> list[str]:
    """An error for each value below ``least``."""
    return require_min(least, **values)


def train_faults(cfg: TrainConfig) -> list[str]:
    """Every fault of a training run, one line each."""
    found = _numbers(cfg) + _choices(cfg) + device_faults(cfg)
    if isinstance(cfg.module, TokenizerModule):
        return found + _architecture(VQGAN, cfg.tokenizer.net) + _tokenizer(cfg)
    assert isinstance(cfg.module, StudentModule)
    found += _students_losses(cfg.module) + _architecture(Transformer, cfg.student.net)
    return found + _against_tokenizer(cfg) + _teacher(cfg)


def _numbers(cfg: TrainConfig) -> list[str]:
    trainer, optim = cfg.trainer, cfg.optim
    counts = {
        f"trainer.{name}": getattr(trainer, name)
        for name in (
            "max_steps",
            "stop_at",
            "devices",
            "nodes",
            "accumulate",
            "val_every",
            "log_every",
            "save_every",
            "keep",
            "max_skipped",
            "threads",
        )
    }
    found = at_least(1, counts)
    found += at_least(
        0,
        {
            "optim.weight_decay": optim.weight_decay,
            "overfit": cfg.overfit,
            "trainer.recompute": cfg.trainer.recompute,
        },
    )
    if optim.lr <= 0:
        found.append(f"optim.lr={optim.lr} is not above 0: set optim.lr=1.5e-4")
    if optim.clip is not None and optim.clip <= 0:
        found.append(f"optim.clip={optim.clip} is not above 0: set optim.clip=1.0 or null")
    if not 0 <= optim.warmup < 1:
        found.append(f"optim.warmup={optim.warmup} is a share of the steps: set it from 0 to 1")
    if not 0 <= optim.min_lr_ratio <= 1:
        found.append(f"optim.min_lr_ratio={optim.min_lr_ratio} is a share: set it from 0 to 1")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        found.append(f"optim.betas={optim.betas} are not two numbers in [0, 1): set [0.9,0.95]")
    return found


def _choices(cfg: TrainConfig) -> list[str]:
    """Values with a fixed set of names, and names that only their group may set."""
    found = []
    for key, value, names in (
        ("trainer.precision", cfg.trainer.precision, PRECISIONS),
        ("trainer.accelerator", cfg.trainer.accelerator, ACCELERATORS),
        ("optim.name", cfg.optim.name, ("adamw",)),
    ):
        if value not in names:
            found.append(f"unknown {key}={value}: {did_you_mean(value, names)}")
    for group, part, key in (("module", cfg.module, "name"), ("data", cfg.data, "kind")):
        value = getattr(part, key)
        own = next(field.default for field in fields(part) if field.name == key)
        if value != own:
            found.append(f"{group}.{key}={value} in the group {group}={own}: set {group}={value}")
    if cfg.start is not None:
        kind = "tokenizer" if isinstance(cfg.module, TokenizerModule) else "student"
        try:
            resolve(cfg.start, kind)
        except UserError as error:
            found.append(str(error).replace(f"set {kind}=PATH", "set start=PATH or null"))
    if cfg.resume not in (None, "auto") and not Path(str(cfg.resume)).exists():
        found.append(f"checkpoint not found: {cfg.resume} (set resume=PATH, auto or null)")
    return found


def _architecture(network: Any, net: Any) -> list[str]:
    """What a network says against its own config; on the meta device nothing is allocated."""
    try:
        with torch.device("meta"):
            network(net)
    except ValueError as error:
        group = "tokenizer" if network is VQGAN else "student"
        return [f"{group}.net: {each}" for each in str(error).split("; ")]
    return []


def _manifests(path: str, kind: str, found: list[str]) -> dict[str, Manifest]:
    """The manifests of the training split by task, none where they cannot be read."""
    try:
        return load_manifests(as_path(path), "train", kind)
    except UserError as error:
        found.append(f"data.path={path}: {error}")
        return {}


def _tokenizer(cfg: TrainConfig) -> list[str]:
    if not isinstance(cfg.data, ImagesConfig):
        return ["module=tokenizer learns from pictures, data is sentences: set data=images"]
    found = _losses(cfg) + _idle(cfg)
    manifest = _any(_manifests(cfg.data.path, "images", found))
    side = cfg.tokenizer.net.resolution
    if manifest is not None and manifest.image_size != side:
        found.append(
            f"image size {manifest.image_size} (pairs in {cfg.data.path}) != resolution {side} "
            f"(tokenizer): set tokenizer.net.resolution={manifest.image_size}"
        )
    return found


def _idle(cfg: TrainConfig) -> list[str]:
    """What a tokenizer's training cannot do, or would not notice."""
    trainer, found = cfg.trainer, []
    if trainer.precision == "bf16-true":
        found.append(
            "trainer.precision=bf16-true and module=tokenizer, whose pictures and codes are "
            "float32: set trainer.precision=bf16-mixed"
        )
    for name, idle in (("accumulate", 1), ("recompute", 0)):
        if (value := getattr(trainer, name)) != idle:
            found.append(
                f"trainer.{name}={value} and module=tokenizer, which does without: "
                f"set trainer.{name}={idle}"
            )
    return found


def _students_losses(module: StudentModule) -> list[str]:
    """Faults of a student's losses."""
    found = at_least(
        0, {"module.input_weight": module.input_weight, "module.z_loss": module.z_loss}
    )
    for name in ("label_smoothing", "misread"):
        if not 0 <= (share := getattr(module, name)) <= 1:
            found.append(f"module.{name}={share} is a share: set it from 0 to 1")
    if isinstance(module, DistillationModule):
        found += at_least(
            0, {"module.gt_weight": module.gt_weight, "module.kd_weight": module.kd_weight}
        )
        if module.temperature <= 0:
            found.append(f"module.temperature={module.temperature} is not above 0: set it to 1.0")
    return found


def _losses(cfg: TrainConfig) -> list[str]:
    """Faults of a tokenizer's losses, among themselves and against the trainer."""
    module = cfg.module
    assert isinstance(module, TokenizerModule)
    weights = ("l1", "l2", "perceptual", "adversarial", "adversarial_start", "codebook")
    found = at_least(0, {f"module.{name}": getattr(module, name) for name in weights})
    counts = ("revive_after", "discriminator_width", "discriminator_layers")
    found += at_least(1, {f"module.{name}": getattr(module, name) for name in counts})
    for name in ("ema_decay", "average"):
        value = getattr(module, name)
        if value is not None and not 0 <= value < 1:
            found.append(f"module.{name}={value} is not in [0, 1): set module.{name}=0.99 or null")
    if module.perceptual and module.distance is Perceptual.lpips and module.vgg_weights is None:
        found.append(f"module.distance=lpips, and module.vgg_weights=null: {WANTED_VGG}")
    if module.adversarial and cfg.trainer.precision == "16-mixed":
        found.append(
            "trainer.precision=16-mixed cannot take two gradients of one picture, as "
            f"module.adversarial={module.adversarial} does: "
            "set trainer.precision=bf16-mixed or module.adversarial=0"
        )
    if cfg.trainer.compile:  # seen with torch 2.13: experiments/LOG.md
        found.append(
            "trainer.compile=true loses gradients of a tokenizer in bfloat16, and module=tokenizer "
            "gains nothing by it in float32: set trainer.compile=false"
        )
    return found


def _against_tokenizer(cfg: TrainConfig) -> list[str]:
    """The student against the ids: those on disk, or those the tokenizer group would make."""
    if not isinstance(cfg.data, SentencesConfig):
        return [
            f"module={cfg.module.name} learns from sentences, data is images: set data=sentences"
        ]
    found: list[str] = []
    net, student = cfg.tokenizer.net, cfg.student.net
    manifests = _manifests(cfg.data.path, "tokens", found)
    manifest = _any(manifests)
    codes: int | None
    tokens: int | None
    if manifest is None:
        codes, side, tokens = net.num_embeddings, net.resolution, net.tokens_per_image
        origin = "tokenizer"
    else:
        codes, side, tokens = manifest.vocab_size, manifest.image_size, manifest.tokens_per_image
        origin = f"ids in {cfg.data.path}"
        if (side, tokens) != (net.resolution, net.tokens_per_image):
            found.append(
                f"{side} px and {tokens} tokens an image ({origin}) != {net.resolution} px and "
                f"{net.tokens_per_image} tokens (tokenizer): set tokenizer=NAME of that size, or "
                "data.path"
            )
    assert codes is not None and tokens is not None
    if codes != student.vocab_size:
        found.append(
            f"codebook size {codes} ({origin}) != vocab_size {student.vocab_size} (student): "
            f"set student.net.vocab_size={codes}"
        )
    if (
        student.embedding is InputEmbedding.codebook
        and net.quantized_embed_dim != student.codebook_dim
    ):
        found.append(
            f"code width {net.quantized_embed_dim} (tokenizer) != codebook_dim "
            f"{student.codebook_dim} (student): "
            f"set student.net.codebook_dim={net.quantized_embed_dim}"
        )
    found += _mixture(cfg.data, manifests)
    return found + _length(cfg.data, tokens, student.max_seq_len)


def _any(manifests: dict[str, Manifest]) -> Manifest | None:
    """One of them: all agree on pictures, codes and tokens."""
    return next(iter(manifests.values()), None)


def _mixture(data: SentencesConfig, manifests: dict[str, Manifest]) -> list[str]:
    """The weights against the tasks that are there, a sentence against their examples."""
    if not manifests:
        return []
    try:
        for task in mixture_weights(data.task_weights, sorted(manifests)):
            examples_per_sentence(data, manifests[task])
    except UserError as error:
        return [str(error)]
    return []


def _length(data: SentencesConfig, tokens: int, context: int) -> list[str]:
    """A sentence against the student's context."""
    found, images = [], data.num_images
    if (needed := images * tokens) > context:
        most = max(1, context // tokens)
        fits = f"data.images_per_sentence={most}"
        if data.images_per_sentence is None:
            fits = f"data.pairs_per_sentence={max(1, most // 2)}"
        found.append(
            f"a sentence of {images} pictures is {needed} tokens ({images} x {tokens}), and the "
            f"student's context is {context}: set student.net.max_seq_len={needed} or {fits}"
        )
    return found


def _teacher(cfg: TrainConfig) -> list[str]:
    teacher = cfg.teacher.checkpoint
    distils = isinstance(cfg.module, DistillationModule)
    if distils and teacher is None:
        return ["module=distillation needs a teacher: set teacher.checkpoint=PATH"]
    if not distils and teacher is not None:
        return [
            f"teacher.checkpoint={teacher}, and module={cfg.module.name} has no use for it: "
            "set module=distillation or teacher.checkpoint=null"
        ]
    return []
