"""What numbers the hardware multiplies fast, how fast, and how much memory is in use."""

import statistics
import time
from functools import cache

import torch


def has_native_bf16(device: str) -> bool:
    """Whether a device ("cpu" or "cuda") multiplies in bfloat16 faster than in float32."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def resolve_precision(precision: str, accelerator: str) -> str:
    """One of Lightning's precisions; ``auto`` is bf16-mixed where the hardware multiplies in bf16.

    Args:
        precision: what is asked for.
        accelerator: cpu, gpu or auto.
    """
    if precision != "auto":
        return precision
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if has_native_bf16("cuda") else "16-mixed"
    return "bf16-mixed" if has_native_bf16("cpu") else "32-true"


def compute_dtype(precision: str) -> torch.dtype:
    """What matrices are multiplied in under one of Lightning's precisions ("bf16-mixed")."""
    kinds = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return kinds.get(precision.partition("-")[0], torch.float32)


@cache
def measure_peak_flops(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """FLOP/s of the product of two square matrices, measured now: the median of five.

    Args:
        device, dtype: where, and of what.
        side: of the matrices; None = 8,192 on a GPU and 1,024 on a processor (some 10 ms).
    """
    side = side or (8192 if device.type == "cuda" else 1024)
    a = torch.ones(side, side, device=device, dtype=dtype)  # draws from no generator

    def once() -> float:
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    return 2 * side**3 / statistics.median(once() for _ in range(5))


def peak_memory_bytes(device: torch.device) -> int:
    """Bytes in use at most so far: of a GPU by tensors, of a processor by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
