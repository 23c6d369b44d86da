"""The devices that a run asks for, and the processes that a launcher has started for it."""

import os
import shutil
from dataclasses import dataclass

import torch

from delvm.models.attention import AttentionBackend
from delvm.models.cpu.attention import cpu_flash_available
from delvm.models.precision import compute_dtype, has_native_bf16, resolve_precision


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


def device_errors(accelerator: str, devices: object, precision: str, compiled: bool) -> list[str]:
    """Errors of what is asked for against the hardware, one line each.

    Args:
        accelerator, devices, precision: as the trainer has them.
        compiled: whether the network goes through torch.compile.
    """
    gpu, errors = uses_gpu(accelerator), []
    if accelerator in ("gpu", "cuda") and not gpu:
        errors.append(
            f"trainer.accelerator={accelerator}, and no CUDA device is visible: set trainer=cpu"
        )
    elif precision == "16-mixed" and not gpu:
        errors.append(
            f"trainer.precision=16-mixed needs a GPU, trainer.accelerator={accelerator} has none: "
            "set trainer.precision=bf16-mixed"
        )
    if compiled and not gpu and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        errors.append(
            "module.compile=true needs a C++ compiler on the CPU, and neither g++ nor clang++ was "
            "found: install one or set module.compile=false"
        )
    if gpu and precision.startswith("bf16") and not has_native_bf16("cuda"):
        errors.append(f"trainer.precision={precision}, and this GPU has no bf16: set 16-mixed")
    if gpu and isinstance(devices, int) and devices > (visible := torch.cuda.device_count()):
        errors.append(
            f"trainer.devices={devices}, and {visible} are visible: set trainer.devices={visible}"
        )
    return errors


def process_errors(devices: object, num_nodes: int) -> list[str]:
    """Errors of the devices and nodes that are asked for against those that were started."""
    launcher = detect_launcher()
    if launcher is None and num_nodes > 1:
        return [
            f"trainer.num_nodes={num_nodes}, and nothing has started processes on other nodes: "
            "start the run by torchrun or srun (docs/scale.md), or set trainer.num_nodes=1"
        ]
    if launcher is None or not isinstance(devices, int) or devices < 1:
        return []
    started = (launcher.devices, launcher.num_nodes)
    if started == (devices, num_nodes):
        return []
    return [
        f"trainer.devices={devices} trainer.num_nodes={num_nodes}, and {launcher.name} has started "
        f"{started[0]} processes on each of {started[1]} nodes: set "
        f"trainer.devices={started[0]} trainer.num_nodes={started[1]}"
    ]


def attention_errors(
    attention: object, accelerator: str, precision: str, dropout: float
) -> list[str]:
    """Errors of an attention backend against hardware, precision and dropout."""
    gpu, device = uses_gpu(accelerator), f"trainer.accelerator={accelerator}"
    if attention is AttentionBackend.xformers and not gpu:
        return [
            f"student.net.attention=xformers needs a GPU, {device} has none: "
            "set student.net.attention=sdpa"
        ]
    if attention is not AttentionBackend.cpu_flash:
        return []
    errors, resolved = [], resolve_precision(precision, accelerator)
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
