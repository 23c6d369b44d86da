"""Numeric precision, FLOP/s and memory of the hardware."""

import statistics
import time
from functools import cache

import torch
from torch import Tensor

from delvm.errors import UserError


def has_native_bf16(device: str) -> bool:
    """Whether a device ("cpu" or "cuda") multiplies faster in bfloat16 than in float32."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def resolve_device(device: str) -> str:
    """The device that ``auto``, ``cpu`` or ``cuda`` means here: "cpu" or "cuda".

    Raises:
        UserError: a GPU is requested and none is visible.
    """
    visible = torch.cuda.is_available()
    if device == "cuda" and not visible:
        raise UserError("device=cuda, but no CUDA device is visible: set device=cpu")
    return "cuda" if visible and device != "cpu" else "cpu"


def resolve_precision(precision: str, accelerator: str) -> str:
    """One of Lightning's precisions; ``auto`` is bf16-mixed where bfloat16 is native.

    Args:
        precision: the requested precision, or ``auto``.
        accelerator: cpu, gpu or auto.
    """
    if precision != "auto":
        return precision
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if has_native_bf16("cuda") else "16-mixed"
    return "bf16-mixed" if has_native_bf16("cpu") else "32-true"


def compute_dtype(precision: str) -> torch.dtype:
    """Dtype of matrix products under one of Lightning's precisions ("bf16-mixed")."""
    dtypes = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return dtypes.get(precision.partition("-")[0], torch.float32)


def autocast_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of matmuls with a weight: autocast's where it is on, else the weight's own."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


@cache
def measure_peak_flops(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of a product of two square matrices, measured now: the median of five runs.

    Args:
        device: where to multiply.
        dtype: of the matrices.
        size: side of the matrices; None = 8,192 on a GPU and 1,024 on CPU (about 10 ms).
    """
    size = size or (8192 if device.type == "cuda" else 1024)
    a = torch.ones(size, size, device=device, dtype=dtype)  # leaves random generators alone

    def timed_product() -> float:
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    timed_product()  # warm-up
    return 2 * size**3 / statistics.median(timed_product() for _ in range(5))


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far in bytes: of tensors on a GPU, of the process on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
