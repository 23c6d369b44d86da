"""`delvm convert`: token files of other projects to token shards, back, and into each other."""

from pathlib import Path

from delvm.commands.app import verb_main
from delvm.commands.output_check import check_output_dir
from delvm.configs.verbs import ConvertConfig
from delvm.interop.convert import convert
from delvm.models.token_space import TokenSpace


def run(cfg: ConvertConfig) -> None:
    """Convert, and print what was written."""
    check_output_dir(cfg.output_dir, "output_dir")
    written = convert(
        Path(cfg.input),
        Path(cfg.output_dir),
        cfg.output_format,
        TokenSpace(cfg.codebook_size, cfg.bos, cfg.eos),
        tokenizer=cfg.tokenizer,
        task=cfg.task,
        split=cfg.split,
        tasks={images: task for task, images in cfg.tasks.items()},
        overwrite=cfg.overwrite,
    )
    for line in written:
        print(line)


main = verb_main(__name__)
