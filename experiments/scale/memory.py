"""The table of docs/scale.md: the memory of a training step per device.

python -m experiments.scale.memory [batch=16] [precision=bf16-mixed]
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import delvm
from delvm.models.transformer import TransformerConfig
from delvm.training.run.memory import estimate_memory

STUDENTS = ("300m", "1b", "7b")
STRATEGIES = (("ddp", 1), *(("fsdp2", devices) for devices in (2, 4, 8, 16, 64)))
COLUMNS = ("weights", "gradients", "optimizer", "gathered", "activations", "logits")
GIB = 1 << 30


def row(
    net: TransformerConfig, strategy: str, shard_size: int, batch: int, precision: str
) -> list[str]:
    """One strategy for a student: its memory in GiB, and the total without and with recomputing."""
    plain, recomputed = (
        estimate_memory(
            replace(net, activation_checkpointing=every),
            precision,
            batch,
            sharded=strategy == "fsdp2",
            shard_size=shard_size,
        )
        for every in (0, 1)
    )
    cells = [getattr(plain, name) for name in COLUMNS]
    cells.insert(5, recomputed.activations)
    return [f"{each / GIB:.1f}" for each in [*cells, plain.total, recomputed.total]]


def table(batch: int = 16, precision: str = "bf16-mixed") -> Iterator[str]:
    """The lines of the table, in Markdown."""
    names = [*COLUMNS[:5], "the same, recomputed", "logits", "total", "recomputed"]
    yield "| " + " | ".join(["student", "strategy", "GPUs per copy", *names]) + " |"
    yield "|---|---|" + "--:|" * (1 + len(names))
    for student in STUDENTS:
        cfg = delvm.compose("train", [f"student={student}"]).student.net
        sizes = ("vocab_size", "dim", "n_layers", "n_heads", "max_seq_len", "codebook_dim")
        net = TransformerConfig(**{name: cfg[name] for name in sizes})
        for strategy, shard_size in STRATEGIES:
            cells = row(net, strategy, shard_size, batch, precision)
            yield "| " + " | ".join([student, strategy, str(shard_size), *cells]) + " |"


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    print("\n".join(table(int(given.get("batch", 16)), given.get("precision", "bf16-mixed"))))
