"""`delvm export`: a student or a tokenizer in the layout of another project."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from delvm.commands.app import run_job
from delvm.configs import config_root
from delvm.configs.verbs import ExportConfig
from delvm.errors import UserError


@hydra.main(version_base="1.3", config_path=str(config_root("export")), config_name="export")
def main(cfg: DictConfig) -> float | None:
    """Export as the config says."""
    return run_job("export", run, cfg)


def run(cfg: ExportConfig) -> None:
    """Write the directory atomically, and print what it holds."""
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
