"""Faults between a training run, the devices it asks for, and the processes that were started."""

import os
import shutil
from dataclasses import dataclass

import torch

from delvm.errors import UserError
from delvm.models.attention import AttentionBackend
from delvm.models.cpu import attention as cpu_attention
from delvm.models.precision import compute_dtype, has_native_bf16, resolve_precision
from delvm.training.config import (
    ShardedConfig,
    StrategyName,
    TokenizerModule,
    TrainConfig,
)

BACKENDS = ("gloo", "nccl")


@dataclass(frozen=True)
class Launch:
    """The processes of a run that a launcher has started.

    Attributes:
        by: the launcher.
        devices: processes on each node.
        nodes: machines.
    """

    by: str
    devices: int
    nodes: int


def launched() -> Launch | None:
    """What torchrun or SLURM (srun, submitit) has started; None where one process stands alone."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return Launch("torchrun", local, int(env["WORLD_SIZE"]) // local)
    interactive = env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_NTASKS" in env and "SLURM_PROCID" in env and not interactive:
        nodes = int(env.get("SLURM_NNODES", "1"))
        return Launch("SLURM", int(env["SLURM_NTASKS"]) // nodes, nodes)
    return None


def device_faults(cfg: TrainConfig) -> list[str]:
    """Every fault, one line each."""
    return _hardware(cfg) + _attention(cfg) + _processes(cfg) + _strategy(cfg)


def _attention(cfg: TrainConfig) -> list[str]:
    """A way to compute attention against the hardware, the precision and dropout."""
    cuda = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = f"trainer.accelerator={cfg.trainer.accelerator}"
    if cfg.student.net.attention is AttentionBackend.xformers and not cuda:
        return [
            f"student.net.attention=xformers needs a GPU, {device} has none: "
            "set student.net.attention=sdpa"
        ]
    if cfg.student.net.attention is not AttentionBackend.cpu_flash:
        return []
    found, kind = [], resolve_precision(cfg.trainer.precision, cfg.trainer.accelerator)
    if cuda:
        found.append(f"is for processors, and {device} has a GPU")
    elif compute_dtype(kind) is not torch.bfloat16:
        found.append(f"computes in bfloat16, and trainer.precision is {kind}")
    elif not cpu_attention.cpu_flash_available():
        found.append("does not work on this machine")
    if cfg.student.net.dropout:
        found.append(f"has no dropout, and student.net.dropout={cfg.student.net.dropout}")
    return [
        f"student.net.attention=cpu_flash {fault}: set student.net.attention=sdpa"
        for fault in found
    ]


def refuse_sweep(cfg: TrainConfig) -> None:
    """Refuse a sweep whose jobs would start processes of their own.

    Raises:
        UserError: each of those would begin with the whole sweep again.
    """
    if cfg.trainer.world > 1 and launched() is None:
        c = cfg.trainer
        raise UserError(
            f"trainer.devices={c.devices} trainer.nodes={c.nodes} in a sweep (-m), where each "
            "process started by a job would begin the sweep anew: run it by torchrun "
            f"--nproc-per-node {c.devices}, or set hydra/launcher=submitit_slurm "
            f"hydra.launcher.tasks_per_node={c.devices} hydra.launcher.nodes={c.nodes}"
        )


def _hardware(cfg: TrainConfig) -> list[str]:
    precision, accelerator = cfg.trainer.precision, cfg.trainer.accelerator
    cuda = accelerator != "cpu" and torch.cuda.is_available()
    found = []
    if accelerator == "gpu" and not cuda:
        found.append("trainer.accelerator=gpu, and no CUDA device is visible: set trainer=cpu")
    elif precision == "16-mixed" and not cuda:
        found.append(
            f"trainer.precision=16-mixed needs a GPU, trainer.accelerator={accelerator} has none: "
            "set trainer.precision=bf16-mixed"
        )
    if cfg.trainer.compile and not cuda and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        found.append(
            "trainer.compile=true needs a C++ compiler on a processor, and neither g++ nor clang++ "
            "is there: install one or set trainer.compile=false"
        )
    if cuda and precision.startswith("bf16") and not has_native_bf16("cuda"):
        found.append(f"trainer.precision={precision}, and this GPU has no bf16: set 16-mixed")
    if cuda and cfg.trainer.devices > torch.cuda.device_count():
        there = torch.cuda.device_count()
        found.append(
            f"trainer.devices={cfg.trainer.devices}, and {there} are visible: "
            f"set trainer.devices={there}"
        )
    return found


def _processes(cfg: TrainConfig) -> list[str]:
    c, there = cfg.trainer, launched()
    if there is None and c.nodes > 1:
        return [
            f"trainer.nodes={c.nodes}, and nothing has started processes on other nodes: start "
            "the run by torchrun or srun (docs/scale.md), or set trainer.nodes=1"
        ]
    if there is not None and (there.devices, there.nodes) != (c.devices, c.nodes):
        return [
            f"trainer.devices={c.devices} trainer.nodes={c.nodes}, and {there.by} has started "
            f"{there.devices} processes on each of {there.nodes} nodes: set "
            f"trainer.devices={there.devices} trainer.nodes={there.nodes}"
        ]
    return []


def _strategy(cfg: TrainConfig) -> list[str]:
    c, name, world = cfg.strategy, cfg.strategy.name, cfg.trainer.world
    spread = name not in (StrategyName.single, StrategyName.ddp)
    if spread != isinstance(c, ShardedConfig):
        return [f"strategy.name={name.value} in another group: set strategy={name.value}"]
    if isinstance(cfg.module, TokenizerModule):
        return _of_a_tokenizer(cfg)
    if name is StrategyName.single and world > 1:
        return [
            f"strategy=single is one device, and trainer.devices={cfg.trainer.devices} "
            f"trainer.nodes={cfg.trainer.nodes}: set strategy=ddp or strategy=fsdp2"
        ]
    found = []
    cuda = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    if name is StrategyName.fsdp and not cuda:
        found.append(
            f"strategy=fsdp needs GPUs, trainer.accelerator={cfg.trainer.accelerator} has none: "
            "set strategy=fsdp2"
        )
    if c.backend is not None and c.backend not in BACKENDS:
        found.append(f"unknown strategy.backend={c.backend}: choose from: {', '.join(BACKENDS)}")
    elif c.backend == "nccl" and not cuda:
        found.append(
            f"strategy.backend=nccl carries tensors of GPUs, trainer.accelerator="
            f"{cfg.trainer.accelerator} has none: set strategy.backend=gloo"
        )
    if isinstance(c, ShardedConfig):
        found += _shards(c, world, cfg.trainer.precision)
    return found


def _of_a_tokenizer(cfg: TrainConfig) -> list[str]:
    given = {
        "trainer.devices": str(cfg.trainer.devices),
        "trainer.nodes": str(cfg.trainer.nodes),
        "strategy": cfg.strategy.name.value,
    }
    wanted = {"trainer.devices": "1", "trainer.nodes": "1", "strategy": "single"}
    odd = [key for key in given if given[key] != wanted[key]]
    if not odd:
        return []
    told, mend = (" ".join(f"{key}={each[key]}" for key in odd) for each in (given, wanted))
    return [f"{told} and module=tokenizer, which keeps its codebook on one device: set {mend}"]


def _shards(c: ShardedConfig, world: int, precision: str) -> list[str]:
    found = []
    if c.shard is not None and (c.shard < 1 or world % c.shard):
        found.append(
            f"strategy.shard={c.shard} does not divide the {world} devices in all: set "
            f"strategy.shard={world} or null"
        )
    if precision == "16-mixed" and c.name is not StrategyName.fsdp:
        found.append(
            f"trainer.precision=16-mixed scales gradients, which strategy={c.name.value} holds in "
            "parts: set trainer.precision=bf16-mixed, or strategy=ddp"
        )
    return found
