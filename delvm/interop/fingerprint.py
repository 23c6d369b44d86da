"""A short name for exactly one tokenizer, so that ids are never decoded by another."""

import hashlib
import json
from dataclasses import asdict

import torch
from torch import Tensor

from delvm.models.transformer import CodebookEmbedding, Transformer
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


def may_carry(student: Transformer, codebook: Tensor) -> bool:
    """Whether the codes that a student carries may be those of a codebook (V, d).

    It tells students of other projects apart, which do not name their tokenizer. One that carries
    none may have been trained on any.
    """
    if not isinstance(student.embed, CodebookEmbedding):
        return True
    own, codes = student.embed.codebook, codebook.to(student.embed.codebook)
    # One of the two may have been stored in half precision.
    return own.shape == codes.shape and torch.allclose(own, codes, rtol=1e-2, atol=1e-6)
