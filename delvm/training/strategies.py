"""How a run is distributed over processes: Lightning strategies, clipping, export of weights.

Each rank reads its own part of the data. Under `DDP` each holds the complete model. Under FSDP it
holds a shard of each weight, of its gradient and of the optimizer state, and a block's weights are
gathered while the block computes; checkpoints are sharded too (`delvm.training.checkpoint_io`).

Strategies know the run through Lightning: the number of nodes, devices and the precision are the
trainer's. They only need arguments that a config can hold.
"""

import atexit
import logging
import os
import sys
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import (
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from delvm.errors import UserError
from delvm.interop.save import save_model
from delvm.models.transformer import Block, Transformer
from delvm.models.vqgan import VQGAN
from delvm.training.checkpoint_io import AtomicCheckpointIO, ShardedCheckpointMixin, unwrap

_FULL_ON_CPU = StateDictOptions(full_state_dict=True, cpu_offload=True)


class ParamDtype(Enum):
    """Dtype of all-gathered parameters (FSDP's param_dtype); auto is bfloat16 under bf16-mixed."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


def single_device() -> str:
    """Lightning's choice for one device (``strategy=single``)."""
    return "auto"


class DDP(DDPStrategy):
    """A complete copy of the model on each device, gradients averaged; atomic checkpoints."""

    def __init__(self, process_group_backend: str | None = None) -> None:
        """
        Args:
            process_group_backend: gloo or nccl; None = nccl between GPUs, gloo between CPUs.
        """
        super().__init__(
            process_group_backend=process_group_backend,
            checkpoint_io=AtomicCheckpointIO(),
            gradient_as_bucket_view=True,
        )

    def setup_environment(self) -> None:
        _destroy_process_group_at_exit()
        super().setup_environment()


class FSDP2Strategy(ShardedCheckpointMixin, ModelParallelStrategy):
    """`fully_shard` per block; with several groups of devices, a replica of the model in each.

    Lightning's mesh has two dimensions. The first is here the replicas and the second the devices
    that share one; Lightning's names for them (data and tensor parallel) mean something else.

    Attributes:
        defers_init: whether a model may come without storage, on the meta device: it is
            initialized a block at a time while it is sharded, so no rank ever holds all of it.
    """

    defers_init = True

    def __init__(
        self,
        shard_size: int | None = None,
        param_dtype: ParamDtype = ParamDtype.auto,
        process_group_backend: str | None = None,
    ) -> None:
        """
        Args:
            shard_size: devices that share one copy of the weights; None = all.
            param_dtype: of gathered weights, or its name; gradients are always
                summed in float32.
            process_group_backend: gloo or nccl; None = nccl between GPUs, gloo between CPUs.
        """
        super().__init__(process_group_backend=process_group_backend)
        self.shard_size, self.param_dtype = shard_size, ParamDtype(param_dtype)

    def setup_environment(self) -> None:
        size = self.shard_size or self.default_shard_size()
        self._data_parallel_size = _replicas(self, size)
        self._tensor_parallel_size = size
        _destroy_process_group_at_exit()
        super().setup_environment()

    def default_shard_size(self) -> int:
        """Devices that share one copy of the weights if nothing else is asked for."""
        return self.num_nodes * self.num_processes

    def shard(self, model: nn.Module) -> None:
        """Shard a model's weights over the mesh: its ``blocks`` if it has any, and the rest."""
        if isinstance(model, FSDPModule):  # Lightning may call configure_model more than once
            return
        replicated = self.device_mesh["data_parallel"].size() > 1
        mesh = self.device_mesh if replicated else self.device_mesh["tensor_parallel"]
        policy = MixedPrecisionPolicy(
            param_dtype=_gather_dtype(self.param_dtype, self.precision_plugin.precision),
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        is_empty = any(weight.is_meta for weight in model.parameters())
        if is_empty and isinstance(model, Transformer):
            parts = model.init_weights()
        else:
            parts = iter((*getattr(model, "blocks", ()), model))
        for part in parts:
            fully_shard(part, mesh=mesh, mp_policy=policy)
        # Losses read hidden states and multiply by the head themselves. The weights outside of the
        # blocks stay gathered from there to the end of the backward pass.
        if hasattr(model, "forward_hidden"):
            register_fsdp_forward_method(model, "forward_hidden")


class HSDPStrategy(FSDP2Strategy):
    """FSDP2 within each node, with a replica of the model on each."""

    def default_shard_size(self) -> int:
        return self.num_processes


class FSDP1Strategy(ShardedCheckpointMixin, FSDPStrategy):
    """`FullyShardedDataParallel` around each transformer block and around the model; GPUs only."""

    def __init__(
        self,
        shard_size: int | None = None,
        param_dtype: ParamDtype = ParamDtype.auto,
        process_group_backend: str | None = None,
    ) -> None:
        """
        Args:
            shard_size, param_dtype, process_group_backend: as for `FSDP2Strategy`.
        """
        super().__init__(
            process_group_backend=process_group_backend,
            auto_wrap_policy={Block},
            state_dict_type="sharded",
        )
        self.shard_size, self.param_dtype = shard_size, ParamDtype(param_dtype)

    def setup_environment(self) -> None:
        world_size = self.num_nodes * self.num_processes
        size = self.shard_size or world_size
        replicas = _replicas(self, size)
        if replicas > 1:
            self.sharding_strategy = ShardingStrategy.HYBRID_SHARD
            self.kwargs["device_mesh"] = (replicas, size)
        # Buffers, which are the codebook and the rotary table, keep their precision.
        self.mixed_precision = MixedPrecision(
            param_dtype=_gather_dtype(self.param_dtype, self.precision_plugin.precision),
            reduce_dtype=torch.float32,
        )
        _destroy_process_group_at_exit()
        super().setup_environment()


class _Devices(Protocol):
    num_nodes: int

    @property
    def num_processes(self) -> int: ...


def _replicas(strategy: _Devices, shard_size: int) -> int:
    """Copies of the weights among all devices."""
    world_size = strategy.num_nodes * strategy.num_processes
    if shard_size < 1 or world_size % shard_size:
        raise UserError(
            f"strategy.shard_size={shard_size} does not divide the {world_size} devices in all: "
            f"set strategy.shard_size={world_size} or null"
        )
    return world_size // shard_size


def _gather_dtype(param_dtype: ParamDtype, precision: object) -> torch.dtype | None:
    """Dtype of gathered weights; None leaves them as they are."""
    auto = param_dtype is ParamDtype.auto and precision == "bf16-mixed"
    return torch.bfloat16 if auto or param_dtype is ParamDtype.bfloat16 else None


def network_class(model: object) -> type:
    """The class of a network as it was built: `fully_shard` makes it a subclass."""
    kind = type(model)
    return kind.__bases__[1] if issubclass(kind, FSDPModule) else kind


def is_rank_zero() -> bool:
    """Whether this is the only process of a run, or the one that reports for all."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks; the tensor itself if there is only one."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def clip_grad_norm(trainer: L.Trainer, optimizer: Optimizer, max_norm: float | None) -> Tensor:
    """Clip an optimizer's gradients by their global norm.

    Args:
        trainer: of the run.
        optimizer: its parameters have gradients, of which each rank may hold a shard.
        max_norm: largest norm; None = only measure.

    Returns:
        (): the norm before clipping, the same on each rank.
    """
    limit = max_norm or float("inf")
    if (scaler := getattr(trainer.precision_plugin, "scaler", None)) is not None:
        # A fused optimizer would unscale only in its step, after this.
        scaler.unscale_(unwrap(optimizer))
    model = trainer.strategy.model
    if isinstance(model, FullyShardedDataParallel):
        return model.clip_grad_norm_(limit)
    return clip_grads_([p for group in optimizer.param_groups for p in group["params"]], limit)


def clip_grads_(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of parameters to a norm of at most ``max_norm``; return it as it was."""
    norm = total_grad_norm(parameters)
    # On CPU a multiplication by 1 is worth leaving out; a GPU would have to wait for the norm.
    if norm.device.type != "cpu" or not norm <= max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def total_grad_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm () of the gradients of parameters, of which each rank may hold a shard."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def export(trainer: L.Trainer, model: VQGAN | Transformer, output_dir: Path) -> None:
    """Write a trained model to a directory: rank zero does, from the shards of all ranks."""
    if trainer.world_size == 1 and not isinstance(model, FSDPModule):
        save_model(model, output_dir)
        return
    assert trainer.model is not None
    # Empty on all ranks but the first.
    full: dict[str, Any] = get_model_state_dict(trainer.model, options=_FULL_ON_CPU)
    if trainer.is_global_zero:
        state = {k.removeprefix("model."): v for k, v in full.items() if k.startswith("model.")}
        save_model(model, output_dir, state=state)
    trainer.strategy.barrier()


def exit_process(code: int) -> None:
    """End this process now with an exit code if it is one of several; its work is done.

    Connection threads may abort an orderly exit ("terminate called without an active exception"),
    and torchrun would report a finished run as failed.
    """
    if dist.is_available() and dist.is_initialized():
        _destroy_process_group()
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@cache
def _destroy_process_group_at_exit() -> None:
    """Close the connections to other ranks where `exit_process` is not reached."""
    atexit.register(_destroy_process_group)


def _destroy_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
