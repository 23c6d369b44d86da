"""`delvm prepare`: write a source's pairs as image shards."""

from delvm.commands.build import build
from delvm.commands.schema import PrepareConfig
from delvm.data.prepare.prepare import prepare
from delvm.storage import as_path


def run(cfg: PrepareConfig) -> None:
    """Write the shards, and say what was written."""
    manifests = prepare(
        build(cfg.source, "source"),
        as_path(cfg.output),
        cfg.splits,
        shard_size=cfg.shard_size,
        max_reject_fraction=cfg.max_reject_fraction,
        overwrite=cfg.overwrite,
    )
    for split in cfg.splits:
        counts = {m.task: m.count for m in manifests if m.split == split}
        listed = ", ".join(f"{task} {count:,}" for task, count in counts.items())
        print(f"{split}: {listed} examples")
    print(f"examples: {cfg.output} (a few of each: {cfg.output}/contact_sheet.png)")
