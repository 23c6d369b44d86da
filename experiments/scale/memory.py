"""The table of docs/scale.md: the memory of a training step on each device.

python -m experiments.scale.memory [batch=16] [precision=bf16-mixed]
"""

import sys
from collections.abc import Iterator

from delvm.commands.app import compose
from delvm.models.transformer import TransformerConfig
from delvm.training.config import StrategyName
from delvm.training.memory import memory

STUDENTS = ("300m", "1b", "7b")
SPREAD = ((StrategyName.ddp, 1), *((StrategyName.fsdp2, devices) for devices in (2, 4, 8, 16, 64)))
COLUMNS = ("weights", "gradients", "optimizer", "copies", "activations", "logits")
GIB = 1 << 30


def row(
    net: TransformerConfig, strategy: StrategyName, shard: int, batch: int, precision: str
) -> list[str]:
    """One way to spread a student: its parts in GiB, and the total without and with recomputing."""
    plain = memory(net, strategy, precision, batch, shard=shard)
    again = memory(net, strategy, precision, batch, shard=shard, recompute=1)
    figures = [getattr(plain, name) for name in COLUMNS]
    figures.insert(5, again.activations)
    return [f"{each / GIB:.1f}" for each in [*figures, plain.total, again.total]]


def table(batch: int = 16, precision: str = "bf16-mixed") -> Iterator[str]:
    """The lines of the table, in Markdown."""
    names = [*COLUMNS[:5], "the same, recomputed", "logits", "total", "recomputed"]
    yield "| " + " | ".join(["student", "strategy", "GPUs a copy", *names]) + " |"
    yield "|---|---|" + "--:|" * (1 + len(names))
    for student in STUDENTS:
        net = compose("train", [f"student={student}"]).student.net
        for strategy, shard in SPREAD:
            cells = row(net, strategy, shard, batch, precision)
            yield "| " + " | ".join([student, strategy.value, str(shard), *cells]) + " |"


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    print("\n".join(table(int(given.get("batch", 16)), given.get("precision", "bf16-mixed"))))
