"""The devices that a run asks for, and the processes that a launcher has started for it.

The functions ``..._errors`` return what is wrong, one line each, before anything is built.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from delvm.errors import did_you_mean
from delvm.models.attention import AttentionBackend
from delvm.models.cpu.attention import cpu_flash_available
from delvm.models.precision import compute_dtype, has_native_bf16, resolve_precision
from delvm.training.strategies import FSDP1Strategy, FSDP2Strategy, single_device

PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
# Words that people use for one of these.
_ALIASES = {
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
    "16": "16-mixed",
    "fp32": "32-true",
    "32": "32-true",
}
PROCESS_GROUP_BACKENDS = ("gloo", "nccl")


@dataclass(frozen=True)
class Devices:
    """What a run asks its trainer for; the attributes are named as Lightning's arguments."""

    accelerator: str
    devices: object
    num_nodes: int
    precision: str

    @property
    def world_size(self) -> int | None:
        """Processes of the run; None where Lightning is to count the devices (``auto``, a list)."""
        if isinstance(self.devices, int) and self.devices > 0:
            return self.devices * self.num_nodes
        return None

    @property
    def gpu(self) -> bool:
        """Whether the run computes on GPUs."""
        return uses_gpu(self.accelerator)

    def __str__(self) -> str:
        return f"trainer.devices={self.devices} trainer.num_nodes={self.num_nodes}"


@dataclass(frozen=True)
class Launcher:
    """What has started the processes of a run.

    Attributes:
        name: torchrun or SLURM.
        devices: processes per node.
        num_nodes: machines.
    """

    name: str
    devices: int
    num_nodes: int


def detect_launcher() -> Launcher | None:
    """What torchrun or SLURM (srun, submitit) has started; None where one process runs alone."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return Launcher("torchrun", local, int(env["WORLD_SIZE"]) // local)
    interactive = env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_NTASKS" in env and "SLURM_PROCID" in env and not interactive:
        nodes = int(env.get("SLURM_NNODES", "1"))
        return Launcher("SLURM", int(env["SLURM_NTASKS"]) // nodes, nodes)
    return None


def uses_gpu(accelerator: str) -> bool:
    """Whether a run with Lightning's ``accelerator`` computes on GPUs."""
    return accelerator != "cpu" and torch.cuda.is_available()


def trainer_errors(settings: Mapping[str, Any], num_threads: int | None) -> list[str]:
    """Errors of the trainer's own settings, of which it may lack any."""
    counts = ("max_steps", "num_nodes", "accumulate_grad_batches", "log_every_n_steps")
    values = {f"trainer.{name}": settings.get(name) for name in counts}
    if values["trainer.max_steps"] == -1:  # Lightning's word for no limit
        del values["trainer.max_steps"]
    values["num_threads"] = num_threads
    errors = [
        f"{key}={value} is below 1: set {key}=1 or more"
        for key, value in values.items()
        if isinstance(value, int) and value < 1
    ]
    if (limit := settings.get("gradient_clip_val")) is not None and limit <= 0:
        errors.append(f"trainer.gradient_clip_val={limit} is not above 0: set it to 1.0 or null")
    for name, options in (("precision", PRECISIONS), ("accelerator", ACCELERATORS)):
        if (value := str(settings[name])) not in options:
            hint = did_you_mean(_ALIASES.get(value, value), options)
            errors.append(f"unknown trainer.{name}={value}: {hint}")
    return errors


def device_errors(asked: Devices) -> list[str]:
    """Errors of what is asked for against the hardware."""
    gpu, precision, errors = asked.gpu, asked.precision, []
    if asked.accelerator in ("gpu", "cuda") and not gpu:
        errors.append(
            f"trainer.accelerator={asked.accelerator}, and no CUDA device is visible: "
            "set trainer=cpu"
        )
    elif precision == "16-mixed" and not gpu:
        errors.append(
            f"trainer.precision=16-mixed needs a GPU, trainer.accelerator={asked.accelerator} has "
            "none: set trainer.precision=bf16-mixed"
        )
    if gpu and precision.startswith("bf16") and not has_native_bf16("cuda"):
        errors.append(f"trainer.precision={precision}, and this GPU has no bf16: set 16-mixed")
    visible = torch.cuda.device_count() if gpu else 0
    if gpu and isinstance(asked.devices, int) and asked.devices > visible:
        errors.append(
            f"trainer.devices={asked.devices}, and {visible} are visible: "
            f"set trainer.devices={visible}"
        )
    return errors


def compile_errors(asked: Devices, compiled: bool, key: str = "module.compile") -> list[str]:
    """Errors of a network that goes through torch.compile, which needs a compiler on the CPU."""
    if not compiled or asked.gpu or any(map(shutil.which, ("c++", "g++", "clang++"))):
        return []
    return [
        f"{key}=true needs a C++ compiler on the CPU, and neither g++ nor clang++ was found: "
        f"install one or set {key}=false"
    ]


def process_errors(asked: Devices) -> list[str]:
    """Errors of the devices and nodes that are asked for against those that were started."""
    launcher = detect_launcher()
    if launcher is None and asked.num_nodes > 1:
        return [
            f"trainer.num_nodes={asked.num_nodes}, and nothing has started processes on other "
            "nodes: start the run by torchrun or srun (docs/scale.md), or set trainer.num_nodes=1"
        ]
    if launcher is None or asked.world_size is None:
        return []
    started = (launcher.devices, launcher.num_nodes)
    if started == (asked.devices, asked.num_nodes):
        return []
    return [
        f"{asked}, and {launcher.name} has started {started[0]} processes on each of {started[1]} "
        f"nodes: set trainer.devices={started[0]} trainer.num_nodes={started[1]}"
    ]


def sweep_errors(asked: Devices) -> list[str]:
    """Jobs of a sweep cannot start processes, since each would begin with the sweep again."""
    if (asked.world_size or 1) == 1 or detect_launcher() is not None:
        return []
    return [
        f"{asked} in a sweep (-m), where each process started by a job would begin the sweep "
        f"again: run it by torchrun --nproc-per-node {asked.devices}, or set "
        f"hydra/launcher=submitit_slurm hydra.launcher.tasks_per_node={asked.devices} "
        f"hydra.launcher.nodes={asked.num_nodes}"
    ]


def strategy_errors(
    strategy: Any, settings: Mapping[str, Any], asked: Devices, one_device: bool
) -> list[str]:
    """Errors of a strategy against the devices.

    Args:
        strategy: its class, or the function that makes it; None if it is unknown.
        settings: its arguments.
        one_device: whether what is trained is a tokenizer, which cannot be divided.
    """
    single, world = strategy is single_device, asked.world_size
    if one_device and not (single and world == 1):
        return [
            f"{asked} strategy={getattr(strategy, '__name__', strategy)} and module=tokenizer, "
            "which keeps its codebook on one device: set trainer.devices=1 trainer.num_nodes=1 "
            "strategy=single"
        ]
    if single and world is not None and world > 1:
        return [f"strategy=single is one device, and {asked}: set strategy=ddp or strategy=fsdp2"]
    kind = strategy if isinstance(strategy, type) else object
    errors, device = [], f"trainer.accelerator={asked.accelerator}"
    if issubclass(kind, FSDP1Strategy) and not asked.gpu:
        errors.append(f"strategy=fsdp needs GPUs, {device} has none: set strategy=fsdp2")
    key, backend = "strategy.process_group_backend", settings.get("process_group_backend")
    if backend is not None and backend not in PROCESS_GROUP_BACKENDS:
        options = ", ".join(PROCESS_GROUP_BACKENDS)
        errors.append(f"unknown {key}={backend}: choose from: {options}")
    elif backend == "nccl" and not asked.gpu:
        errors.append(f"{key}=nccl is for GPUs, {device} has none: set {key}=gloo")
    size = settings.get("shard_size")
    if size is not None and world is not None and (size < 1 or world % size):
        errors.append(
            f"strategy.shard_size={size} does not divide the {world} devices in all: set "
            f"strategy.shard_size={world} or null"
        )
    if asked.precision == "16-mixed" and issubclass(kind, FSDP2Strategy):
        errors.append(
            "trainer.precision=16-mixed scales gradients, which this strategy shards: set "
            "trainer.precision=bf16-mixed, or strategy=ddp"
        )
    return errors


def attention_errors(attention: object, asked: Devices, dropout: float) -> list[str]:
    """Errors of an attention backend against hardware, precision and dropout."""
    gpu, device = asked.gpu, f"trainer.accelerator={asked.accelerator}"
    if attention is AttentionBackend.xformers and not gpu:
        return [
            f"student.net.attention=xformers needs a GPU, {device} has none: "
            "set student.net.attention=sdpa"
        ]
    if attention is not AttentionBackend.cpu_flash:
        return []
    errors, resolved = [], resolve_precision(asked.precision, asked.accelerator)
    if gpu:
        errors.append(f"is for CPUs, and {device} has a GPU")
    elif compute_dtype(resolved) is not torch.bfloat16:
        errors.append(f"computes in bfloat16, and trainer.precision is {resolved}")
    elif not cpu_flash_available():
        errors.append("does not work on this machine")
    if dropout:
        errors.append(f"has no dropout, and student.net.dropout={dropout}")
    return [
        f"student.net.attention=cpu_flash {error}: set student.net.attention=sdpa"
        for error in errors
    ]
