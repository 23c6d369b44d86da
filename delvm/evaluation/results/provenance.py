"""Where the numbers of an evaluation come from: versions, hardware, models and data."""

import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import delvm
from delvm.data.shards.manifest import load_manifests
from delvm.interop.fingerprint import weights_fingerprint
from delvm.models.protocols import StudentNet, TokenizerNet
from delvm.storage import StoragePath

UNKNOWN_ORIGIN = "origin not stated"
Info = dict[str, Any]
PACKAGES = ("torch", "numpy", "scipy", "pillow", "torchmetrics")


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of what computes the numbers."""
    found = {"delvm": delvm.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def hardware(device: str) -> dict[str, Any]:
    """The machine: its system, CPU and, where it is used, GPU."""
    found = {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if device.startswith("cuda") and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def student_fingerprints(students: Mapping[str, StudentNet]) -> dict[str, str]:
    """Name -> fingerprint of its weights."""
    return {name: weights_fingerprint(student) for name, student in students.items()}


def data_fingerprints(
    root: StoragePath, tasks: list[str], splits: Sequence[str] = ("test", "val")
) -> dict[str, dict[str, Any]]:
    """Task -> split -> what its manifest records of the examples."""
    found: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    for split in splits:
        manifests = load_manifests(root, split, "images")
        for task in tasks:
            each = manifests[task]
            found[task][split] = {
                "source": each.source,
                "seed": each.seed,
                "count": each.count,
                "image_size": each.image_size,
                "settings": each.settings,
                "digest": each.digest,
            }
    return found


def circumstances(device: str, world_size: int, started: float) -> dict[str, Any]:
    """What answers do not depend on.

    Args:
        started: By `time.monotonic`.
    """
    return {
        "hardware": hardware(device),
        "world_size": world_size,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
    }


def model_info(name: str, model: TokenizerNet | StudentNet, origins: Mapping[str, str]) -> Info:
    """The origin and the size of a model.

    Args:
        name: Of a student, or "tokenizer".
        origins: Name -> where its weights come from.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"origin": origins.get(name, UNKNOWN_ORIGIN), "parameters": parameters}
