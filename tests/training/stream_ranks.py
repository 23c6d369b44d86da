"""Streams of several ranks: their data modules in one process, and runs of two processes.

torchrun --nproc-per-node 2 -m tests.training.stream_ranks TOKENS OUTPUT_DIR
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import torch
from omegaconf import DictConfig

from delvm.training.strategies import exit_process
from tests.training.runs import student_config, train


class Ranks:
    """The data modules of all ranks of a run, as Lightning would have them."""

    opened: ClassVar[list["Ranks"]] = []

    def __init__(self, data_module, root, ranks=1, state=None, **changes):
        settings = {"batch_size": 2, "num_workers": 0, "shuffle_window_shards": 2} | changes
        self.modules = [data_module(str(root), **settings) for _ in range(ranks)]
        strategy = SimpleNamespace(root_device=torch.device("cpu"), all_gather=self.gather)
        for rank, module in enumerate(self.modules):
            module.trainer = SimpleNamespace(global_rank=rank, world_size=ranks, strategy=strategy)
            if state is not None:
                module.load_state_dict(state)
        self.opened.append(self)
        self.loaders = [iter(module.train_dataloader()) for module in self.modules]

    def gather(self, _):
        workers = self.modules[0].train.num_workers
        positions = [torch.from_numpy(module.train.state.positions) for module in self.modules]
        return torch.stack(
            [each[rank * workers : (rank + 1) * workers] for rank, each in enumerate(positions)]
        )

    @classmethod
    def end_all(cls):
        """End the workers at once: in a cycle of garbage they would be waited for."""
        while cls.opened:
            cls.opened.pop().loaders.clear()

    def pull(self, steps):
        """Train on so many steps: the batches of all ranks, in their order."""
        seen = []
        for _ in range(steps):
            for module, loader in zip(self.modules, self.loaders, strict=True):
                batch = next(loader)
                module.advance(batch)
                seen.append(batch)
        return seen

    def state_dict(self):
        """That of the first rank, after a check that any other's would do."""
        states = [module.state_dict() for module in self.modules]
        assert all(
            torch.equal(each.pop("positions"), states[0]["positions"]) for each in states[1:]
        )
        assert all(each == {k: states[0][k] for k in each} for each in states[1:])
        return states[0]


def main(tokens: Path, output_dir: Path) -> None:
    """Train two processes in one job and in two, under two strategies; torchrun starts it."""
    for strategy in ("ddp", "fsdp2"):
        for run in ("one_job", "two_jobs"):
            cfg = stream_config(tokens, 2, f"strategy={strategy}")
            if run == "two_jobs":
                cfg.callbacks.stop_at_step.step = 3
                train(cfg, output_dir / strategy / run)
                cfg.callbacks.stop_at_step.step, cfg.resume = None, "auto"
            train(cfg, output_dir / strategy / run)


def stream_config(tokens: Path, devices: int, *overrides: str) -> DictConfig:
    """Six steps on streams, with a worker per process and several windows an epoch."""
    return student_config(
        tokens, 6, "data=streaming", "data.batch_size=2", "data.shuffle_window_shards=2",
        f"trainer.devices={devices}", "trainer.val_check_interval=3", *overrides,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    exit_process(0)
