"""Distillations with a projection by two processes, for `test_objectives_of_distillation`.

torchrun --nproc-per-node 2 -m tests.training.objective_ranks TOKENS TEACHER OUTPUT_DIR
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from tests.training.runs import student_config, train

STRATEGIES = ("ddp", "fsdp2")
BATCH = 8  # over all processes


def distillation(
    tokens: Path, teacher: Path, strategy: str, devices: int, *overrides: str
) -> DictConfig:
    """Three steps; each process takes its part of the same batches."""
    return student_config(
        tokens, 3, "module=distillation", "module/loss=hidden_states",
        "module/loss/classes=clusters", f"teacher.checkpoint={teacher}", f"strategy={strategy}",
        f"trainer.devices={devices}", f"data.batch_size={BATCH // devices}",
        "trainer.gradient_clip_val=0.1", *overrides,
    )  # fmt: skip


if __name__ == "__main__":
    tokens, teacher, output_dir = map(Path, sys.argv[1:])
    for strategy in STRATEGIES:
        train(distillation(tokens, teacher, strategy, 2), output_dir / strategy)
    from delvm.training.strategies import exit_process

    exit_process(0)
