"""What numbers the hardware multiplies fast."""

import torch


def has_bf16(device: str) -> bool:
    """Whether a device ("cpu" or "cuda") multiplies in bfloat16 faster than in float32."""
    if device == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
