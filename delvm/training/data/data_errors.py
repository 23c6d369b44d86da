"""Errors of shards on disk against the networks that are to learn from them, before any is built.

Networks are given by their settings, named as in `VQGANConfig` and `TransformerConfig`. One of a
foreign class may lack any of them; what it lacks is not compared.
"""

from collections.abc import Mapping
from typing import Any

from delvm.data.datasets.packing import document_sizes
from delvm.data.datasets.sampler import mixture_weights
from delvm.data.datasets.sentences import (
    SentencesConfig,
    fitting_length,
    length_override,
    sentence_sizes,
)
from delvm.data.shards.manifest import Manifest, load_manifests, load_manifests_if_any
from delvm.errors import UserError
from delvm.models.transformer import InputEmbedding
from delvm.storage import as_path


def tokenizer_data_errors(path: str, resolution: int | None) -> list[str]:
    """Errors of image shards against a tokenizer's image side in pixels, one line each."""
    manifests, errors = _load_manifests(path, "images")
    for manifest in list(manifests.values())[:1]:
        if resolution is not None and manifest.image_size != resolution:
            errors.append(
                f"image size {manifest.image_size} (images in {path}) != resolution "
                f"{resolution} (tokenizer): set tokenizer.net.resolution={manifest.image_size}"
            )
    return errors


def student_data_errors(
    data: SentencesConfig, tokenizer: Mapping[str, Any], student: Mapping[str, Any]
) -> list[str]:
    """Errors of token shards against a student, and a tokenizer from which it takes sizes."""
    manifests, errors = _load_manifests(data.path, "tokens")
    manifest = next(iter(manifests.values()), None)
    codes, tokens = tokenizer.get("num_embeddings"), _tokens_per_image(tokenizer)
    origin = "tokenizer"
    if manifest is not None:
        codes, tokens = manifest.vocab_size, manifest.tokens_per_image
        origin = f"ids in {data.path}"
        errors += _size_errors(tokenizer, manifest, origin)
    vocab_size, width = student.get("vocab_size"), tokenizer.get("quantized_embed_dim")
    uses_codebook = student.get("embedding") is InputEmbedding.codebook
    # Other embeddings may have ids above the codes, of special tokens, as LVM's students have.
    if codes is not None and vocab_size is not None and codes != vocab_size:
        spare = not uses_codebook and codes < vocab_size
        errors += [] if spare else [_vocab_error(codes, origin, vocab_size)]
    if uses_codebook and width is not None and width != student["codebook_dim"]:
        errors.append(
            f"code width {width} (tokenizer) != codebook_dim {student['codebook_dim']} (student): "
            f"set student.net.codebook_dim={width}"
        )
    context = student.get("max_seq_len")
    most = context // tokens if tokens and context else None
    chosen: list[Manifest] = []
    try:
        if manifests:
            held_out = load_manifests_if_any(as_path(data.path), "val", "tokens")
            weights = mixture_weights(data.task_weights, sorted(manifests), [*held_out])
            chosen = [manifests[task] for task in weights]
            (document_sizes if data.packing else sentence_sizes)(data, chosen, most)
    except UserError as error:
        errors.append(str(error))
    return errors + _context_errors(data, tokens, context, chosen)


def _vocab_error(codes: int, origin: str, vocab_size: int) -> str:
    return (
        f"codebook size {codes} ({origin}) != vocab_size {vocab_size} (student): "
        f"set student.net.vocab_size={codes}"
    )


def _load_manifests(path: str, kind: str) -> tuple[dict[str, Manifest], list[str]]:
    """The manifests of the training split by task, or the error that they cannot be read with."""
    try:
        return load_manifests(as_path(path), "train", kind), []
    except UserError as error:
        return {}, [f"data.path={path}: {error}"]


def _tokens_per_image(tokenizer: Mapping[str, Any]) -> int | None:
    """Of a VQGAN's settings; None of another tokenizer's."""
    if "channel_mult" not in tokenizer:
        return None
    factor = tokenizer.get("patch_size", 1) * 2 ** (len(tokenizer["channel_mult"]) - 1)
    return int((tokenizer["resolution"] // factor) ** 2)


def _size_errors(tokenizer: Mapping[str, Any], manifest: Manifest, origin: str) -> list[str]:
    side, tokens = manifest.image_size, manifest.tokens_per_image
    expected = _tokens_per_image(tokenizer)
    if expected is None or (side, tokens) == (tokenizer["resolution"], expected):
        return []
    return [
        f"{side} px and {tokens} tokens per image ({origin}) != {tokenizer['resolution']} px and "
        f"{expected} tokens (tokenizer): set tokenizer=NAME of that size, or data.path"
    ]


def _context_errors(
    data: SentencesConfig, tokens: int | None, context: int | None, manifests: list[Manifest]
) -> list[str]:
    """Errors of a sentence's length against the student's context, both in tokens."""
    if not tokens or context is None or (needed := data.num_images * tokens) <= context:
        return []
    room, fits = context // tokens, ""
    most = fitting_length(manifests, room) if manifests else room
    if most and most <= room:
        fits = f" or {length_override(data, most)}"
    return [
        f"a sentence of {data.num_images} images is {needed} tokens ({data.num_images} x "
        f"{tokens}), and the student's max_seq_len is {context}: set "
        f"student.net.max_seq_len={needed}{fits}"
    ]
