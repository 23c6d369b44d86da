"""A short hash that identifies a tokenizer, so that ids are never decoded by another one."""

import hashlib
import json

import torch
from torch import Tensor

from delvm import legacy
from delvm.interop.save import plain_config
from delvm.models.embedding import CodebookEmbedding
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN

# Fields (under their first names) added to `VQGANConfig` since the first shards were written, and
# the value that tokenizers had before. With that value a field is left out of the hash.
_DEFAULTS_BEFORE_V1 = {"signed_pixels": False, "normalize_codes": False, "lone_attention": False}


def fingerprint(tokenizer: VQGAN) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over architecture and float32 weights.

    It is stored in shards and students, so it must not change when a field is renamed: the
    architecture is hashed under the first name of each field.
    """
    config = legacy.restore_keys(
        plain_config(tokenizer.config), legacy.VQGAN_CONFIG, legacy.VQGAN_CONFIG_VALUES
    )
    for name, default in _DEFAULTS_BEFORE_V1.items():
        if config.get(name) == default:
            del config[name]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def codebook_matches(student: Transformer, codebook: Tensor) -> bool:
    """Whether the student's copy of the tokenizer's codebook, if it has one, may be this (V, d).

    This is the check for students of other projects, which do not record a fingerprint. A student
    without a codebook may have been trained with any tokenizer.
    """
    if not isinstance(student.embed, CodebookEmbedding):
        return True
    own, codebook = student.embed.codebook, codebook.to(student.embed.codebook)
    # One of the two may have been stored in half precision.
    return own.shape == codebook.shape and torch.allclose(own, codebook, rtol=1e-2, atol=1e-6)
