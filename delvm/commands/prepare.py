"""`delvm prepare`: write the examples of a source as image shards."""

from delvm.commands.app import verb_main
from delvm.commands.build import build
from delvm.configs.verbs import PrepareConfig
from delvm.data.prepare.prepare import prepare
from delvm.storage import as_path


def run(cfg: PrepareConfig) -> None:
    """Write the shards, and print what was written."""
    manifests = prepare(
        build(cfg.source, "source"),
        as_path(cfg.output_dir),
        cfg.splits,
        shard_size=cfg.shard_size,
        max_reject_fraction=cfg.max_reject_fraction,
        overwrite=cfg.overwrite,
    )
    for split in cfg.splits:
        counts = {m.task: m.count for m in manifests if m.split == split}
        listed = ", ".join(f"{task} {count:,}" for task, count in counts.items())
        print(f"{split}: {listed or 'no'} examples")
    print(f"examples: {cfg.output_dir} (a few of each: {cfg.output_dir}/contact_sheet.png)")


main = verb_main(__name__)
