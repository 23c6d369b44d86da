"""A short name for exactly one tokenizer, so that ids are never decoded by another."""

import hashlib
import json
from dataclasses import asdict
from enum import Enum

import torch
from torch import Tensor

from delvm import legacy
from delvm.models.transformer import CodebookEmbedding, Transformer
from delvm.models.vqgan import VQGAN

# Fields added to `VQGANConfig` since the first shards were written, under their first names, and
# the value that a tokenizer without the field has.
_DEFAULTS_BEFORE_V1 = {"signed_pixels": False, "normalize_codes": False, "lone_attention": False}


def fingerprint(tokenizer: VQGAN) -> str:
    """Sixteen hexadecimal digits of the SHA-256 over the architecture and the float32 weights.

    Shards and students on disk carry it, so it must not change: the architecture is hashed under
    the names that its fields had first.
    """
    config = {k: v.value if isinstance(v, Enum) else v for k, v in asdict(tokenizer.config).items()}
    config = legacy.restore_keys(config, legacy.VQGAN_CONFIG, legacy.VQGAN_CONFIG_VALUES)
    for name, default in _DEFAULTS_BEFORE_V1.items():
        if config[name] == default:
            del config[name]
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
