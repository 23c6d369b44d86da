"""`delvm export`: a student or a tokenizer in the layout of another project."""

from pathlib import Path

from delvm.commands.app import verb_main
from delvm.commands.output_check import check_output_dir
from delvm.configs.verbs import ExportConfig
from delvm.errors import UserError


def run(cfg: ExportConfig) -> None:
    """Write the directory atomically, and print what it holds."""
    # The directory is built next to an earlier one and takes its name.
    check_output_dir(str(Path(cfg.output_dir).parent), "output_dir")
    # Imported here: torch takes seconds, which a mistake in the config need not wait for.
    import torch

    from delvm.interop.formats import FORMATS, import_writable_format
    from delvm.interop.load import load_student, load_tokenizer, resolve

    kind = FORMATS[cfg.format].exports or ""
    layout = import_writable_format(cfg.format)
    output, dtype = Path(cfg.output_dir), getattr(torch, cfg.dtype)
    source = resolve(cfg.checkpoint, kind)
    if source.resolve().is_relative_to(output.resolve()):  # the directory is replaced
        raise UserError(
            f"output_dir={cfg.output_dir} would replace checkpoint={cfg.checkpoint}: set "
            "output_dir to another directory"
        )
    if kind == "student":
        student = load_student(source)
        layout.write(student, output, dtype)
        what = f"{student.parameter_count() / 1e6:,.1f}M parameters"
    else:
        tokenizer = load_tokenizer(source)
        layout.write(tokenizer, output, dtype)
        what = f"{tokenizer.config.num_embeddings:,} codes"
    print(f"{source}: {kind} of {what} to {output} ({cfg.format}, {cfg.dtype})")


main = verb_main(__name__)
