"""Adapters and token orders trained by two processes, for `test_adapter`.

torchrun --nproc-per-node 2 -m tests.training.adapter_ranks TOKENS PRETRAINED OUTPUT_DIR
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from tests.training.runs import student_config, train

STRATEGIES = ("ddp", "fsdp2")
BATCH = 8  # over all processes


def adapter(tokens: Path, pretrained: Path, steps: int, *overrides: str) -> DictConfig:
    """A run that trains an adapter."""
    return student_config(
        tokens, steps, "module/adapter=lora", f"init_from={pretrained}", *overrides
    )


if __name__ == "__main__":
    tokens, pretrained, output_dir = map(Path, sys.argv[1:])
    order = ("module/token_order=random", "module.token_order.end=0.5")
    for strategy in STRATEGIES:
        two = (f"strategy={strategy}", "trainer.devices=2", f"data.batch_size={BATCH // 2}")
        train(adapter(tokens, pretrained, 4, *two), output_dir / strategy)
        train(student_config(tokens, 4, *order, *two), output_dir / f"{strategy}_order")
    from delvm.training.strategies import exit_process

    exit_process(0)
