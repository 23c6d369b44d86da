"""Training from stored distributions by two processes, for `test_offline_distillation`.

torchrun --nproc-per-node 2 -m tests.training.offline_ranks TOKENS CACHE OUTPUT_DIR
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from delvm.training.strategies import exit_process
from tests.training.runs import student_config, train

STEPS = 5


def offline(tokens: Path, cache: Path, *overrides: str, steps: int = STEPS) -> DictConfig:
    """A short run from stored distributions; ``seed`` changes the weights, not the sentences."""
    return student_config(
        tokens, steps, "module=offline_distillation", "teacher=offline", f"teacher.path={cache}",
        "module.input_weight=0.5", "seed=1", "data.seed=0", *overrides,
    )  # fmt: skip


if __name__ == "__main__":
    tokens, cache, output_dir = map(Path, sys.argv[1:])
    for strategy in ("ddp", "fsdp2"):
        words = (f"strategy={strategy}", "trainer.devices=2", "data.batch_size=4")
        train(offline(tokens, cache, *words), output_dir / strategy)
    exit_process(0)
