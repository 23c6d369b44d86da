"""Errors across the groups of a training run, and between it and its data.

Each node's own settings are checked by its ``validate``; here are the checks that no single node
can make. Nodes of foreign classes are not checked: what they take is theirs to say.
"""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from delvm.data.datasets.packing import examples_that_fit
from delvm.data.datasets.sampler import mixture_weights
from delvm.data.datasets.sentences import SentencesConfig, examples_per_sentence
from delvm.data.shards.manifest import Manifest, load_manifests
from delvm.errors import UserError, did_you_mean
from delvm.models.transformer import InputEmbedding
from delvm.storage import as_path
from delvm.training.datamodules import ImageDataModule, SentenceDataModule
from delvm.training.distillation import DistillationModule
from delvm.training.init_weights import init_errors
from delvm.training.launch import (
    attention_errors,
    detect_launcher,
    device_errors,
    process_errors,
    uses_gpu,
)
from delvm.training.strategies import FSDP1Strategy, FSDP2Strategy
from delvm.training.student import StudentModule
from delvm.training.tokenizer import TokenizerModule

PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
PROCESS_GROUP_BACKENDS = ("gloo", "nccl")


def train_errors(cfg: DictConfig) -> list[str]:
    """Every error across the groups of a training run, one line each."""
    if errors := _sweep_errors(cfg):
        return errors
    trainer = cfg.trainer
    errors = _trainer_errors(cfg)
    errors += device_errors(
        trainer.accelerator, trainer.devices, trainer.precision, cfg.module.get("compile", False)
    )
    errors += process_errors(trainer.devices, trainer.num_nodes)
    errors += _strategy_errors(cfg)
    kind = "tokenizer" if _builds(cfg.module, TokenizerModule) else "student"
    errors += init_errors(cfg.resume, cfg.init_from, kind)
    if _builds(cfg.module, TokenizerModule):
        errors += _tokenizer_errors(cfg)
    elif _builds(cfg.module, StudentModule):
        net = cfg.student.get("net", {})
        errors += attention_errors(
            net.get("attention"), trainer.accelerator, trainer.precision, net.get("dropout", 0.0)
        )
        errors += _student_errors(cfg)
    return errors + _teacher_errors(cfg)


def _builds(node: Any, kind: type) -> bool:
    """Whether a node's `_target_` is a class or a subclass of it."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    try:
        found = None if target is None else get_object(target)
    except Exception:  # not importable, which building it reports
        return False
    return isinstance(found, type) and issubclass(found, kind)


def world_size(cfg: DictConfig) -> int | None:
    """Processes of a run; None where Lightning is to count the devices (``auto``, a list)."""
    devices = cfg.trainer.devices
    return devices * cfg.trainer.num_nodes if isinstance(devices, int) and devices > 0 else None


def _sweep_errors(cfg: DictConfig) -> list[str]:
    """Jobs of a sweep cannot start processes, since each would begin with the sweep again."""
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    if not in_sweep or (world_size(cfg) or 1) == 1 or detect_launcher() is not None:
        return []
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    return [
        f"trainer.devices={devices} trainer.num_nodes={nodes} in a sweep (-m), where each "
        "process started by a job would begin the sweep again: run it by torchrun "
        f"--nproc-per-node {devices}, or set hydra/launcher=submitit_slurm "
        f"hydra.launcher.tasks_per_node={devices} hydra.launcher.nodes={nodes}"
    ]


def _trainer_errors(cfg: DictConfig) -> list[str]:
    trainer = cfg.trainer
    counts = ("max_steps", "num_nodes", "accumulate_grad_batches", "log_every_n_steps")
    values = {f"trainer.{name}": trainer.get(name) for name in counts}
    if values["trainer.max_steps"] == -1:  # Lightning's word for no limit
        del values["trainer.max_steps"]
    values["num_threads"] = cfg.num_threads
    errors = [
        f"{key}={value} is below 1: set {key}=1 or more"
        for key, value in values.items()
        if isinstance(value, int) and value < 1
    ]
    if (limit := trainer.get("gradient_clip_val")) is not None and limit <= 0:
        errors.append(f"trainer.gradient_clip_val={limit} is not above 0: set it to 1.0 or null")
    for name, options in (("precision", PRECISIONS), ("accelerator", ACCELERATORS)):
        if (value := str(trainer[name])) not in options:
            errors.append(f"unknown trainer.{name}={value}: {did_you_mean(value, options)}")
    decay = OmegaConf.select(cfg, "callbacks.weight_ema.decay")
    if decay is not None and not 0 <= decay < 1:
        errors.append(f"callbacks.weight_ema.decay={decay} is not in [0, 1): set it to 0.99")
    return errors


def _strategy_errors(cfg: DictConfig) -> list[str]:
    c, world, trainer = cfg.strategy, world_size(cfg), cfg.trainer
    single = str(c.get("_target_", "")).endswith("single_device")
    asked = f"trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes}"
    if _builds(cfg.module, TokenizerModule) and not (single and world == 1):
        return [
            f"{asked} strategy={str(c.get('_target_')).rpartition('.')[2]} and module=tokenizer, "
            "which keeps its codebook on one device: set trainer.devices=1 trainer.num_nodes=1 "
            "strategy=single"
        ]
    if single and world is not None and world > 1:
        return [f"strategy=single is one device, and {asked}: set strategy=ddp or strategy=fsdp2"]
    errors, device = [], f"trainer.accelerator={trainer.accelerator}"
    gpu = uses_gpu(trainer.accelerator)
    if _builds(c, FSDP1Strategy) and not gpu:
        errors.append(f"strategy=fsdp needs GPUs, {device} has none: set strategy=fsdp2")
    key, backend = "strategy.process_group_backend", c.get("process_group_backend")
    if backend is not None and backend not in PROCESS_GROUP_BACKENDS:
        options = ", ".join(PROCESS_GROUP_BACKENDS)
        errors.append(f"unknown {key}={backend}: choose from: {options}")
    elif backend == "nccl" and not gpu:
        errors.append(f"{key}=nccl is for GPUs, {device} has none: set {key}=gloo")
    size = c.get("shard_size")
    if size is not None and world is not None and (size < 1 or world % size):
        errors.append(
            f"strategy.shard_size={size} does not divide the {world} devices in all: set "
            f"strategy.shard_size={world} or null"
        )
    if trainer.precision == "16-mixed" and _builds(c, FSDP2Strategy):
        errors.append(
            "trainer.precision=16-mixed scales gradients, which this strategy shards: set "
            "trainer.precision=bf16-mixed, or strategy=ddp"
        )
    return errors


def _manifest(path: str, kind: str, errors: list[str]) -> dict[str, Manifest]:
    """The manifests of the training split by task; none where they cannot be read."""
    try:
        return load_manifests(as_path(path), "train", kind)
    except UserError as error:
        errors.append(f"data.path={path}: {error}")
        return {}


def _tokenizer_errors(cfg: DictConfig) -> list[str]:
    """A tokenizer's training against its data and what it cannot do."""
    if _builds(cfg.data, SentenceDataModule):
        return ["module=tokenizer learns from images, data is sentences: set data=images"]
    trainer, disc_weight, errors = cfg.trainer, cfg.module.get("disc_weight"), []
    if trainer.precision == "bf16-true":
        errors.append(
            "trainer.precision=bf16-true and module=tokenizer, whose images and codes are "
            "float32: set trainer.precision=bf16-mixed"
        )
    if (batches := trainer.accumulate_grad_batches) != 1:
        errors.append(
            f"trainer.accumulate_grad_batches={batches} and module=tokenizer, which does without: "
            "set trainer.accumulate_grad_batches=1"
        )
    if disc_weight and trainer.precision == "16-mixed":
        errors.append(
            "trainer.precision=16-mixed cannot take two gradients of one image, as "
            f"module.disc_weight={disc_weight} does: set trainer.precision=bf16-mixed or "
            "module.disc_weight=0"
        )
    size = cfg.tokenizer.get("net", {}).get("resolution")
    if _builds(cfg.data, ImageDataModule) and size is not None:
        for manifest in list(_manifest(cfg.data.path, "images", errors).values())[:1]:
            if manifest.image_size != size:
                errors.append(
                    f"image size {manifest.image_size} (images in {cfg.data.path}) != resolution "
                    f"{size} (tokenizer): set tokenizer.net.resolution={manifest.image_size}"
                )
    return errors


def _student_errors(cfg: DictConfig) -> list[str]:
    """The student and its tokenizer against the ids on disk."""
    if _builds(cfg.data, ImageDataModule):
        return ["module=student learns from sentences, data is images: set data=sentences"]
    if not _builds(cfg.data, SentenceDataModule):
        return []
    errors: list[str] = []
    manifests = _manifest(cfg.data.path, "tokens", errors)
    manifest = next(iter(manifests.values()), None)
    net, student = cfg.tokenizer.get("net", {}), cfg.student.get("net", {})
    codes, tokens = net.get("num_embeddings"), _tokens_per_image(net)
    origin = "tokenizer"
    if manifest is not None:
        codes, tokens = manifest.vocab_size, manifest.tokens_per_image
        origin = f"ids in {cfg.data.path}"
        errors += _tokenizer_mismatches(net, manifest, origin)
    vocab_size, width = student.get("vocab_size"), net.get("quantized_embed_dim")
    if None not in (codes, vocab_size) and codes != vocab_size:
        errors.append(
            f"codebook size {codes} ({origin}) != vocab_size {vocab_size} (student): "
            f"set student.net.vocab_size={codes}"
        )
    uses_codebook = student.get("embedding") is InputEmbedding.codebook
    if uses_codebook and width is not None and width != student.codebook_dim:
        errors.append(
            f"code width {width} (tokenizer) != codebook_dim {student.codebook_dim} (student): "
            f"set student.net.codebook_dim={width}"
        )
    names = ("path", "pairs_per_sentence", "images_per_sentence")
    data = SentencesConfig(
        **{name: cfg.data[name] for name in names}, task_weights=dict(cfg.data.task_weights or {})
    )
    try:
        count = examples_that_fit if cfg.data.packing else examples_per_sentence
        for task in mixture_weights(data.task_weights, sorted(manifests)) if manifests else ():
            count(data, manifests[task])
    except UserError as error:
        errors.append(str(error))
    context = student.get("max_seq_len")
    if tokens and context is not None and (needed := data.num_images * tokens) > context:
        most = max(1, context // tokens)
        fits = f"data.images_per_sentence={most}"
        if data.images_per_sentence is None:
            fits = f"data.pairs_per_sentence={max(1, most // 2)}"
        errors.append(
            f"a sentence of {data.num_images} images is {needed} tokens ({data.num_images} x "
            f"{tokens}), and the student's max_seq_len is {context}: set "
            f"student.net.max_seq_len={needed} or {fits}"
        )
    return errors


def _tokens_per_image(net: Any) -> int | None:
    """Of a VQGAN's config; None of another tokenizer's."""
    if "channel_mult" not in net:
        return None
    factor = net.get("patch_size", 1) * 2 ** (len(net.channel_mult) - 1)
    return int((net.resolution // factor) ** 2)


def _tokenizer_mismatches(net: Any, manifest: Manifest, origin: str) -> list[str]:
    """The chosen tokenizer, from which a student takes sizes, against the ids on disk."""
    side, tokens, expected = manifest.image_size, manifest.tokens_per_image, _tokens_per_image(net)
    if expected is None or (side, tokens) == (net.resolution, expected):
        return []
    return [
        f"{side} px and {tokens} tokens per image ({origin}) != {net.resolution} px and "
        f"{expected} tokens (tokenizer): set tokenizer=NAME of that size, or data.path"
    ]


def _teacher_errors(cfg: DictConfig) -> list[str]:
    checkpoint = cfg.teacher.get("checkpoint")
    if _builds(cfg.module, DistillationModule):
        if checkpoint is None and str(cfg.teacher.get("_target_")).endswith("load_teacher"):
            return ["module=distillation needs a teacher: set teacher.checkpoint=PATH"]
    elif checkpoint is not None and "teacher" not in cfg.module:
        return [
            f"teacher.checkpoint={checkpoint}, and this module has no use for it: "
            "set module=distillation or teacher.checkpoint=null"
        ]
    return []
