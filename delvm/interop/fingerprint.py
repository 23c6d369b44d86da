"""A short hash that identifies a tokenizer, so that ids are never decoded by another one."""

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delvm import legacy
from delvm.errors import UserError
from delvm.interop.save import plain_config
from delvm.models.embedding import CodebookEmbedding
from delvm.models.protocols import StudentNet, TokenizerNet
from delvm.models.token_space import num_image_tokens
from delvm.models.vqgan import VQGANConfig

# Fields (under their first names) added to `VQGANConfig` since the first shards were written, and
# the value that tokenizers had before. With that value a field is left out of the hash.
_DEFAULTS_BEFORE_V1 = {"signed_pixels": False, "normalize_codes": False, "lone_attention": False}


def fingerprint(tokenizer: TokenizerNet) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over architecture and float32 weights.

    It is stored in shards and students, so it must not change when a field is renamed: the
    architecture is hashed under the first name of each field.
    """
    architecture = json.dumps(_architecture(tokenizer), sort_keys=True, default=str)
    digest = hashlib.sha256(architecture.encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_fingerprint(student: StudentNet | nn.Module) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over the weights, their types and names.

    Unlike that of a tokenizer it is not kept in files that must be read years later.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(student.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _architecture(tokenizer: TokenizerNet) -> dict[str, Any]:
    config = getattr(tokenizer, "config", None)
    if not isinstance(config, VQGANConfig):  # a tokenizer from elsewhere
        kind = type(tokenizer)
        settings = asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}
        return {"class": f"{kind.__module__}.{kind.__qualname__}", "config": settings}
    fields = legacy.restore_keys(
        plain_config(config), legacy.VQGAN_CONFIG, legacy.VQGAN_CONFIG_VALUES
    )
    defaults = _DEFAULTS_BEFORE_V1.items()
    return {name: value for name, value in fields.items() if (name, value) not in defaults}


def codebook_matches(student: StudentNet, codebook: Tensor) -> bool:
    """Whether the student's copy of the tokenizer's codebook, if it has one, may be this (V, d).

    This is the check for students of other projects, which do not record a fingerprint. A student
    without a codebook may have been trained with any tokenizer.
    """
    embed = getattr(student, "embed", None)
    if not isinstance(embed, CodebookEmbedding):
        return True
    own, codebook = embed.codebook, codebook.to(embed.codebook)
    # One of the two may have been stored in half precision.
    return own.shape == codebook.shape and torch.allclose(own, codebook, rtol=1e-2, atol=1e-6)


def check_tokenizer_match(
    tokenizer: TokenizerNet, student: StudentNet, role: str = "student"
) -> None:
    """Check that a student was trained on a tokenizer's tokens.

    Students of other projects do not store the fingerprint of their tokenizer. They are matched by
    the codebook that they contain or, without one, by the number of image tokens.

    Args:
        tokenizer, student: the two.
        role: of the student, for the message.

    Raises:
        UserError: it was trained on another tokenizer's tokens.
    """
    given, trained_on = fingerprint(tokenizer), student.tokenizer_fingerprint
    fix = "set tokenizer=PATH to the one its token shards were made with"
    if role != "student":
        fix = f"set {role}=PATH to a student of this tokenizer"
    if trained_on and trained_on != given:
        raise UserError(
            f"tokenizer {given} is not the one this {role} was trained on ({trained_on}): {fix}"
        )
    codebook_size, known = tokenizer.codebook_size, num_image_tokens(student)
    if codebook_size != known:
        if not trained_on and codebook_size < student.vocab_size:
            declared = f'"delvm": {{"space": {{"codebook_size": {codebook_size}}}}}'
            fix += f", or if all ids after {codebook_size - 1} are special tokens or padding, add "
            fix += f"{declared} to its config.json"
        raise UserError(
            f"num_embeddings {codebook_size} (tokenizer) != {known} codes ({role}): {fix}"
        )
    if not trained_on and not codebook_matches(student, tokenizer.codebook):
        raise UserError(
            f"the codes of tokenizer {given} differ from those that this {role} contains: {fix}"
        )
