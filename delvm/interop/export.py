"""A student or a tokenizer in the layout of another project: `delvm export`."""

from pathlib import Path

import torch

from delvm.errors import UserError
from delvm.interop.formats import FORMATS, import_writable_format
from delvm.interop.load import load_student, load_tokenizer, resolve


def export(checkpoint: str, layout: str, output_dir: Path, dtype: str) -> str:
    """Write a directory atomically.

    Args:
        checkpoint: whatever `load_student` or `load_tokenizer` reads.
        layout: a name in `FORMATS` that can be exported to.
        output_dir: is replaced.
        dtype: of the weights: float32, bfloat16 or float16.

    Returns:
        What was written, in one line.

    Raises:
        UserError: there is no such checkpoint, the layout cannot hold it, or it would be replaced.
    """
    kind = FORMATS[layout].exports or ""
    write = import_writable_format(layout).write
    source = resolve(checkpoint, kind)
    if source.resolve().is_relative_to(output_dir.resolve()):
        raise UserError(
            f"output_dir={output_dir} would replace checkpoint={checkpoint}: set output_dir to "
            "another directory"
        )
    if kind == "student":
        student = load_student(source)
        write(student, output_dir, getattr(torch, dtype))
        what = f"{student.parameter_count() / 1e6:,.1f}M parameters"
    else:
        tokenizer = load_tokenizer(source)
        write(tokenizer, output_dir, getattr(torch, dtype))
        what = f"{tokenizer.config.num_embeddings:,} codes"
    return f"{source}: {kind} of {what} to {output_dir} ({layout}, {dtype})"
