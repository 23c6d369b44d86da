"""Training runs by two processes, for `test_strategies`, which starts it with torchrun.

torchrun --nproc-per-node 2 -m tests.training.ranks TOKENS OUTPUT_DIR
"""

import json
import sys
from pathlib import Path

from omegaconf import DictConfig
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from delvm.training.strategies import exit_process
from delvm.training.student import StudentModule
from tests.training.runs import student_config, train

BATCH = 8  # over all processes
CLIP = 0.1  # clips every step
STOP = 7  # of 20 steps, for the runs that other processes resume

SINGLE = ("strategy=single",)
SHARDED = {
    "ddp": ("strategy=ddp",),
    "fsdp2": ("strategy=fsdp2",),
    "hsdp": ("strategy=hsdp", "strategy.shard_size=1"),  # two replicas, as on two nodes
}
# A student whose head is its embedding: the gradients of two uses are summed in one tensor.
TIED = ("student.net.embedding=tied",)


def config(
    tokens: Path, strategy: tuple[str, ...], devices: int, steps: int = 20, *overrides: str
) -> DictConfig:
    """A short run; each process takes its part of the same batches."""
    return student_config(
        tokens, steps, *strategy, f"trainer.devices={devices}", "trainer.val_check_interval=10",
        # Sentences of pairs weigh less than those of clips, so the parts of two processes differ.
        "module.input_weight=0.25", "data.images_per_sentence=6",
        "data.task_weights={pose: 2.0, clips: 1.0}", f"data.batch_size={BATCH // devices}",
        "optimizer.lr=3e-3", f"trainer.gradient_clip_val={CLIP}", *overrides,
    )  # fmt: skip


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def optimizer_bytes(module: StudentModule) -> int:
    """Bytes of the optimizer's state in this process."""
    states = module.trainer.optimizers[0].state.values()
    return sum(local(each).nbytes for state in states for each in state.values())


def main(tokens: Path, output_dir: Path) -> None:
    """Every run in turn.

    Each process leaves in ``norms_RANK.json`` the gradient norms of its steps as they were logged,
    and after clipping; in ``held_RANK.json`` the bytes that it held of the optimizer's state and of
    the gradients.
    """
    norms: dict[str, list[tuple[float, float]]] = {}
    held: dict[str, list[int]] = {}
    log = StudentModule.log

    def recording_log(self: StudentModule, name: str, value: Tensor, **rest: object) -> None:
        if name == "train/grad_norm":
            grads = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
            full = [each.full_tensor() if isinstance(each, DTensor) else each for each in grads]
            after = sum(each.double().square().sum().item() for each in full) ** 0.5
            norms.setdefault(run, []).append((float(value), after))
            held[run] = [optimizer_bytes(self), sum(each.nbytes for each in map(local, grads))]
        log(self, name, value, **rest)  # type: ignore[arg-type]

    StudentModule.log = recording_log  # type: ignore[method-assign, assignment]
    for run, strategy in SHARDED.items():
        train(config(tokens, strategy, 2), output_dir / run)
    fsdp2 = SHARDED["fsdp2"]
    run = "tied"
    train(config(tokens, fsdp2, 2, 4, *TIED), output_dir / run)
    run = "bf16"
    train(config(tokens, fsdp2, 2, 4, "trainer.precision=bf16-mixed"), output_dir / run)
    for run in ("two_two", "two_one"):
        stop = f"callbacks.stop_at_step.step={STOP}"
        train(config(tokens, fsdp2, 2, 20, stop), output_dir / run)
    for run in ("two_two", "one_two"):  # the second was begun by one process
        train(config(tokens, fsdp2, 2, 20, "resume=auto"), output_dir / run)
    rank = distributed.get_rank()
    (output_dir / f"norms_{rank}.json").write_text(json.dumps(norms))
    (output_dir / f"held_{rank}.json").write_text(json.dumps(held))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    exit_process(0)
