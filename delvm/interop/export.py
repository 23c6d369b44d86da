"""Weights as a folder that is ready to push: `delvm export`."""

from pathlib import Path

import torch

from delvm.directories import atomic_dir
from delvm.errors import UserError
from delvm.interop.fingerprint import check_tokenizer_match
from delvm.interop.formats import FORMATS, OWN_FORMAT, import_writable_format
from delvm.interop.load import load_student, load_tokenizer, resolve
from delvm.interop.model_card import model_card
from delvm.interop.save import save_model
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN


def export(
    checkpoint: str, layout: str, output_dir: Path, dtype: str, tokenizer: str | None = None
) -> str:
    """Write a directory atomically: weights in safetensors, config.json, and a model card.

    Args:
        checkpoint: whatever `load_student` or `load_tokenizer` reads.
        layout: a name in `FORMATS` that can be exported to, or `OWN_FORMAT`: DeLVM's own, with the
            student and its tokenizer in a folder each.
        output_dir: is replaced.
        dtype: of the weights: float32, bfloat16 or float16.
        tokenizer: that the student was trained with; of `OWN_FORMAT`.

    Returns:
        What was written, in one line.

    Raises:
        UserError: there is no such checkpoint, the layout cannot hold it, it would be replaced, or
            student and tokenizer do not belong together.
    """
    kind = "student" if layout == OWN_FORMAT else FORMATS[layout].exports or ""
    load = load_student if kind == "student" else load_tokenizer
    model = load(checkpoint, key="checkpoint")
    source = _source(checkpoint, kind, output_dir, "checkpoint")
    where = f"to {output_dir} ({layout}, {dtype})"
    if layout == OWN_FORMAT:
        assert isinstance(model, Transformer) and tokenizer is not None
        other = load_tokenizer(_source(tokenizer, "tokenizer", output_dir, "tokenizer"))
        _write_own(model, other, output_dir, getattr(torch, dtype))
    else:
        write = import_writable_format(layout).write
        library = "transformers" if layout in ("llama", "internlm_hf") else "delvm"
        student = model if isinstance(model, Transformer) else None
        own = model if isinstance(model, VQGAN) else None
        card = model_card(student, own, layout, library)
        write(model, output_dir, getattr(torch, dtype), {"README.md": card})
    if isinstance(model, VQGAN):
        return f"{source}: {kind} of {model.config.num_embeddings:,} codes {where}"
    return f"{source}: {kind} of {model.parameter_count() / 1e6:,.1f}M parameters {where}"


def _source(path: str, kind: str, output_dir: Path, key: str) -> Path:
    """Where weights are read from, which must not be replaced."""
    source = resolve(path, kind)
    if source.resolve().is_relative_to(output_dir.resolve()):
        raise UserError(
            f"output_dir={output_dir} would replace {key}={path}: set output_dir to "
            "another directory"
        )
    return source


def _write_own(
    student: Transformer, tokenizer: VQGAN, output_dir: Path, dtype: torch.dtype
) -> None:
    check_tokenizer_match(tokenizer, student)
    with atomic_dir(output_dir) as tmp:
        save_model(student, tmp / "student", dtype)
        # Its fingerprint is that of its weights, so these keep their precision.
        save_model(tokenizer, tmp / "tokenizer")
        card = model_card(student, tokenizer, OWN_FORMAT, "delvm")
        (tmp / "README.md").write_text(card, "utf-8")
