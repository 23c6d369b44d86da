"""Saves the random number generators with each checkpoint, so that a resumed run is exact."""

import os
import random
from typing import Any

import lightning as L
import torch


class RNGState(L.Callback):
    """Keeps the state of every generator that training samples from, one per rank."""

    def __init__(self, seed: int | None = None) -> None:
        """
        Args:
            seed: of ranks that have no saved state, as when more ranks resume a run; None = the
                one that was given to `lightning.seed_everything`.
        """
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self._states: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        own: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if torch.cuda.is_available():
            own["cuda"] = torch.cuda.get_rng_state()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"ranks": [own]}
        states: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._states = state_dict["ranks"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the states, or seed each rank differently if there is not one for each."""
        if len(self._states) != trainer.world_size:
            if self._states or trainer.world_size > 1:
                step, rank = trainer.global_step, trainer.global_rank
                torch.manual_seed(hash((self.seed, step, rank)) % 2**63)
            return
        own = self._states[trainer.global_rank]
        torch.set_rng_state(own["torch"].cpu())
        random.setstate(_tuples(own["python"]))
        if "cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"].cpu())


def _tuples(value: Any) -> Any:
    """Python's state with its tuples, which a checkpoint may have turned into lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
