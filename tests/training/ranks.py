"""Training runs by two processes, for `test_strategies`, which starts it with torchrun.

torchrun --nproc-per-node 2 -m tests.training.ranks TOKENS FOLDER
"""

import json
import sys
from pathlib import Path

from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from delvm.models.transformer import Init, InputEmbedding, TransformerConfig
from delvm.training.config import (
    OptimConfig,
    ShardedConfig,
    StrategyConfig,
    StrategyName,
    StudentConfig,
    StudentModule,
    TrainConfig,
)
from delvm.training.fit import train
from delvm.training.strategies import exit_process
from delvm.training.student import StudentTraining
from tests.training.runs import V, student_config

BATCH = 8  # of all the processes together
CLIP = 0.1  # bites at every step
STOP = 7  # of 20 steps, for the runs that are gone on with by others

SINGLE = StrategyConfig()
SPREAD = {
    "ddp": StrategyConfig(StrategyName.ddp),
    "fsdp2": ShardedConfig(StrategyName.fsdp2),
    "hsdp": ShardedConfig(StrategyName.hsdp, shard=1),  # two copies, as on two nodes
}


def config(
    tokens: Path, strategy: StrategyConfig, devices: int, steps: int = 20, **changes: object
) -> TrainConfig:
    """A short run; each process takes its part of the same batches."""
    made = student_config(tokens, steps, strategy=strategy, **changes)
    # Sentences of pairs weigh less than those of clips, so the two processes' parts differ.
    made.module = StudentModule(input_weight=0.25)
    made.optim = OptimConfig(lr=3e-3, warmup=0.1, clip=CLIP)
    made.data.batch_size = BATCH // devices
    made.data.images_per_sentence = 6  # type: ignore[union-attr]
    made.data.task_weights = {"pose": 2.0, "clips": 1.0}  # type: ignore[union-attr]
    made.trainer.devices, made.trainer.val_every = devices, 10
    return made


def tied() -> StudentConfig:
    """A student whose head is its embedding: the gradients of two uses meet in one tensor."""
    net = TransformerConfig(
        V, 32, 2, 2, max_seq_len=32, init=Init.gpt2, embedding=InputEmbedding.tied
    )
    return StudentConfig(net)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held_by_optimizer(module: StudentTraining) -> int:
    """Bytes of the optimizer's state in this process."""
    states = module.trainer.optimizers[0].state.values()
    return sum(local(each).nbytes for state in states for each in state.values())


def main(tokens: Path, folder: Path) -> None:
    """Every run in turn.

    Each process leaves in ``norms_RANK.json`` the norms of its steps that were logged, and those
    of its gradients after clipping; in ``held_RANK.json`` the bytes that it held of the
    optimizer's state and of the gradients.
    """
    norms: dict[str, list[tuple[float, float]]] = {}
    held: dict[str, list[int]] = {}
    log = StudentTraining.log

    def heard(self: StudentTraining, name: str, value: Tensor, **rest: object) -> None:
        if name == "train/grad_norm":
            grads = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
            whole = [each.full_tensor() if isinstance(each, DTensor) else each for each in grads]
            after = sum(each.double().square().sum().item() for each in whole) ** 0.5
            norms.setdefault(run, []).append((float(value), after))
            held[run] = [held_by_optimizer(self), sum(each.nbytes for each in map(local, grads))]
        log(self, name, value, **rest)  # type: ignore[arg-type]

    StudentTraining.log = heard  # type: ignore[method-assign, assignment]
    for run, strategy in SPREAD.items():
        train(config(tokens, strategy, 2), folder / run)
    fsdp2 = SPREAD["fsdp2"]
    run = "tied"
    train(config(tokens, fsdp2, 2, 4, student=tied()), folder / run)
    run = "bf16"
    low = config(tokens, fsdp2, 2, 4)
    low.trainer.precision = "bf16-mixed"
    train(low, folder / run)
    for run in ("two_two", "two_one"):
        stopped = config(tokens, fsdp2, 2)
        stopped.trainer.stop_at = STOP
        train(stopped, folder / run)
    for run in ("two_two", "one_two"):  # the second was begun by one process
        train(config(tokens, fsdp2, 2, resume="auto"), folder / run)
    rank = distributed.get_rank()
    (folder / f"norms_{rank}.json").write_text(json.dumps(norms))
    (folder / f"held_{rank}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    exit_process(0)
