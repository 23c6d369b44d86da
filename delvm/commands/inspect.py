"""`delvm inspect`: show shards as images and statistics, and report what is wrong with them."""

from pathlib import Path

from delvm.commands.app import verb_main
from delvm.commands.output_check import check_output_dir
from delvm.configs.verbs import InspectConfig
from delvm.errors import CheckFailed
from delvm.storage import as_path


def run(cfg: InspectConfig) -> None:
    """Inspect, and print what was found.

    Raises:
        CheckFailed: something is wrong.
    """
    check_output_dir(cfg.output_dir, "output_dir")
    # Imported here: torch takes seconds, which a mistake in the config need not wait for.
    from delvm.evaluation.shard_inspection import format_inspection, inspect_shards, shard_kind
    from delvm.interop.load import load_tokenizer
    from delvm.models.precision import resolve_device

    root, output = as_path(cfg.input_dir), Path(cfg.output_dir)
    tokens = shard_kind(root) == "tokens"
    tokenizer = load_tokenizer(cfg.tokenizer, resolve_device(cfg.device)) if tokens else None
    report = inspect_shards(
        root, tokenizer, output_dir=output, num_images=cfg.num_images, seed=cfg.seed
    )
    print("\n".join(format_inspection(report)))
    print(f"images and statistics: {output}")
    if flags := report["flags"]:
        listed = "\n  - ".join(["", *flags])
        raise CheckFailed(f"{len(flags)} flagged in {root}:{listed}")
    print("nothing wrong")


main = verb_main(__name__)
