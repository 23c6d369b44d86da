"""Distillations with sampled answers by two processes, for `test_on_policy_runs`.

torchrun --nproc-per-node 2 -m tests.training.on_policy_ranks TOKENS MIXTURE TEACHER OUTPUT_DIR
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from delvm.training.strategies import exit_process
from tests.training.runs import student_config, train

STRATEGIES = ("ddp", "fsdp2")
BATCH = 8  # over all processes
# Where the student always takes the likeliest token in all sentences, nothing depends on ranks.
SAMPLING = {
    "greedy": ("module.on_policy.fraction=1.0", "module.on_policy.temperature=0.0"),
    "sampled": ("module.on_policy.fraction=0.5",),
}


def distillation(
    tokens: Path, teacher: Path, strategy: str, devices: int, *overrides: str
) -> DictConfig:
    """Three steps; each process takes its part of the same batches."""
    return student_config(
        tokens, 3, "module=distillation", "module/on_policy=default",
        "module.on_policy.min_teacher_prob=0.05", "module/on_policy/selection=tokens",
        "module.on_policy.selection.by=entropy", "module.on_policy.selection.threshold=2.77",
        f"teacher.checkpoint={teacher}", f"strategy={strategy}", f"trainer.devices={devices}",
        f"data.batch_size={BATCH // devices}", *overrides,
    )  # fmt: skip


def mixed(tokens: Path, teacher: Path, strategy: str, *overrides: str) -> DictConfig:
    """One sentence per process, of pairs or of single images, which have no answer."""
    return distillation(
        tokens, teacher, strategy, 2, "data.images_per_sentence=6", "data.batch_size=1",
        "data.task_weights={pose: 1.0, photos: 1.0}", *SAMPLING["greedy"], *overrides,
    )  # fmt: skip


def main(tokens: Path, mixture: Path, teacher: Path, output_dir: Path) -> None:
    """Both ways of sampling under each strategy; then without any callback, and of mixed tasks.

    Callbacks may call the student before it samples for the first time.
    """
    for strategy in STRATEGIES:
        for name, overrides in SAMPLING.items():
            cfg = distillation(tokens, teacher, strategy, 2, *overrides)
            train(cfg, output_dir / f"{strategy}_{name}")
        bare = ("callbacks=none", *SAMPLING["greedy"])
        train(distillation(tokens, teacher, strategy, 2, *bare), output_dir / f"{strategy}_bare")
        train(mixed(mixture, teacher, strategy), output_dir / f"{strategy}_mixed")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
    exit_process(0)
