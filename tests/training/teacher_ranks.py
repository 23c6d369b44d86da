"""Distillations by two processes, for `test_teacher`, which starts it with torchrun.

torchrun --nproc-per-node 2 -m tests.training.teacher_ranks TOKENS TEACHER OUTPUT_DIR
"""

import json
import sys
from pathlib import Path
from typing import cast

from omegaconf import DictConfig
from torch import distributed
from torch.distributed.tensor import DTensor

from delvm.commands.instantiate import build_run
from delvm.training.distillation import DistillationModule
from delvm.training.strategies import exit_process
from tests.training.runs import student_config

PRECISIONS = ("fp32", "bf16", "int8")
BATCH = 8  # over all processes


def distillation(
    tokens: Path, teacher: Path, devices: int, precision: str, *overrides: str
) -> DictConfig:
    """Four steps; each process takes its part of the same batches."""
    strategy = "single" if devices == 1 else "fsdp2"
    return student_config(
        tokens, 4, "module=distillation", "module.input_weight=0.0", "seed=1",
        f"teacher.checkpoint={teacher}", f"teacher.precision={precision}",
        f"strategy={strategy}", f"trainer.devices={devices}",
        f"data.batch_size={BATCH // devices}", *overrides,
    )  # fmt: skip


def main(tokens: Path, teacher: Path, output_dir: Path) -> None:
    """A run for each precision, then one with bfloat16 products.

    Each process leaves in ``held_RANK.json`` how many numbers of the teacher's blocks it holds, by
    precision.
    """
    held = {}
    for precision in PRECISIONS:
        cfg = distillation(tokens, teacher, 2, precision, f"output_dir={output_dir / precision}")
        run = build_run(cfg)
        run.fit()
        module = cast(DistillationModule, run.module)
        weights = list(module.teacher.blocks.parameters())
        assert all(isinstance(each, DTensor) for each in weights)
        held[precision] = sum(each.to_local().numel() for each in weights)
    mixed = ("trainer.precision=bf16-mixed", f"output_dir={output_dir / 'mixed'}")
    build_run(distillation(tokens, teacher, 2, "int8", *mixed)).fit()
    (output_dir / f"held_{distributed.get_rank()}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
    exit_process(0)
