"""`delvm export`: a student or a tokenizer in the layout of another project."""

from pathlib import Path

import torch

from delvm.commands.schema import ExportConfig
from delvm.errors import UserError
from delvm.interop.formats import FORMATS, import_writable_format
from delvm.interop.load import load_student, load_tokenizer, resolve


def run(cfg: ExportConfig) -> None:
    """Write the folder whole or not at all, and say what it holds."""
    kind = FORMATS[cfg.format.value].exports or ""
    layout = import_writable_format(cfg.format.value)
    output, dtype = Path(cfg.output), getattr(torch, cfg.dtype.value)
    source = resolve(cfg.checkpoint, kind)
    if source.resolve().is_relative_to(output.resolve()):  # a folder is replaced whole
        raise UserError(
            f"output={cfg.output} would replace checkpoint={cfg.checkpoint}: set output to another "
            "folder"
        )
    if kind == "student":
        student = load_student(source)
        layout.write(student, output, dtype)
        what = f"{student.parameter_count() / 1e6:,.1f}M parameters"
    else:
        tokenizer = load_tokenizer(source)
        layout.write(tokenizer, output, dtype)
        what = f"{tokenizer.config.num_embeddings:,} codes"
    print(f"{source}: {kind} of {what} to {output} ({cfg.format.value}, {cfg.dtype.value})")
