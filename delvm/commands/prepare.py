"""`delvm prepare`: write a source's pairs as image shards."""

from dataclasses import asdict

from delvm.commands.schema import PrepareConfig, ShapesSource
from delvm.data.prepare.prepare import prepare
from delvm.data.sources.base import RawSource, SourceConfig
from delvm.data.sources.shapes.source import Shapes
from delvm.data.types import Source
from delvm.storage import as_path


def source_of(cfg: SourceConfig) -> Source:
    """The source that a config describes."""
    if isinstance(cfg, RawSource):
        return cfg
    assert isinstance(cfg, ShapesSource)
    settings = asdict(cfg)
    del settings["name"]
    return Shapes(**settings)


def run(cfg: PrepareConfig) -> None:
    """Write the shards, and say what was written."""
    manifests = prepare(
        source_of(cfg.source),
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
