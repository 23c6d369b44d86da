"""A short name for exactly one tokenizer, so that ids are never decoded by another."""

import hashlib
import json
from dataclasses import asdict

from delvm.models.vqgan import VQGAN

# Added to the architecture since the first shards were written -> what they were without it.
_ADDED = {"signed_pixels": False, "normalize_codes": False, "lone_attention": False}


def fingerprint(tokenizer: VQGAN) -> str:
    """Sixteen hexadecimal digits of the SHA-256 over the architecture and the float32 weights."""
    config = {
        k: v for k, v in asdict(tokenizer.config).items() if k not in _ADDED or v != _ADDED[k]
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
