"""`delvm export`: weights as a folder ready to push, in our layout or another project's."""

from pathlib import Path

from delvm.commands.app import verb_main
from delvm.commands.output_check import check_output_dir
from delvm.configs.verbs import ExportConfig


def run(cfg: ExportConfig) -> None:
    """Write the directory atomically, and print what it holds."""
    # The directory is built next to an earlier one and takes its name.
    check_output_dir(str(Path(cfg.output_dir).parent), "output_dir")
    # Imported here: torch takes seconds, which a mistake in the config need not wait for.
    from delvm.interop.export import export

    print(export(cfg.checkpoint, cfg.format, Path(cfg.output_dir), cfg.dtype, cfg.tokenizer))


main = verb_main(__name__)
