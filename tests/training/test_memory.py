"""The estimated memory is what a step takes, counted tensor by tensor."""

import weakref
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from delvm.models.transformer import InputEmbedding, Transformer, TransformerConfig
from delvm.training.losses import MAX_LOGITS_BYTES, chunked_linear_loss, cross_entropy
from delvm.training.run.memory import estimate_memory

NET = TransformerConfig(512, dim=128, n_layers=4, n_heads=4, max_seq_len=256, codebook_dim=16)
BATCH = 2
TENTH = 0.1  # the estimate may be this much too high, and a hundredth too low


class Live(TorchDispatchMode):
    """Bytes of the live tensors, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, int] = {}

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.seen:
            self.seen[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.release, key)

    def release(self, key: int) -> None:
        self.now -= self.seen.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_iter(out):
            if isinstance(each, torch.Tensor):
                self.count(each)
        return out


def measured(net: TransformerConfig, precision: str) -> tuple[int, int, int]:
    """A step after another one, as where gradients accumulate.

    Returns:
        bytes of the model, its gradients and optimizer state; those that the forward pass adds; and
        the peak.
    """
    torch.manual_seed(0)
    codebook = torch.randn(net.vocab_size, net.codebook_dim)
    model = Transformer(net, codebook if net.embedding is InputEmbedding.codebook else None).train()
    if precision == "bf16-true":
        model.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    live = Live()
    for each in tree_iter([dict(model.state_dict()), list(optimizer.state.values())]):
        live.count(each)
    for parameter in model.parameters():
        assert parameter.grad is not None
        live.count(parameter.grad)
    kept = live.now
    ids = torch.randint(0, net.vocab_size, (BATCH, net.max_seq_len))
    truth = ids.flatten()
    low = torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
    with live:
        with low:
            hidden = model.forward_hidden(ids).flatten(0, 1)
            forward = live.now - kept
            loss = chunked_linear_loss(
                hidden,
                model.head.weight,
                lambda logits, truth: cross_entropy(logits, truth).sum(),
                (truth,),
            )
        loss.backward()
    return kept, forward, live.peak


@pytest.mark.parametrize("recompute", [0, 1, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_memory_of_a_step(precision, recompute):
    net = replace(NET, activation_checkpointing=recompute)
    estimate = estimate_memory(net, precision, BATCH, gpu=False)
    kept, forward, peak = measured(net, precision)
    assert estimate.weights + estimate.gradients + estimate.optimizer == pytest.approx(
        kept, rel=0.01
    )
    # The loss comes after the forward pass, and cast weights are counted separately.
    assert estimate.activations + estimate.gathered > 0.99 * forward
    assert 0.99 * peak < estimate.total < (1 + TENTH) * peak


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"embedding": InputEmbedding.learned},
        {"embedding": InputEmbedding.tied, "n_layers": 2},
        {"qk_norm": True},
        {"n_heads": 2, "ffn_dim": 768},
        {"vocab_size": 8192},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_memory_matches_for_all_configs(changes, precision):
    net = replace(NET, **changes)
    estimate = estimate_memory(net, precision, BATCH, gpu=False)
    _, _, peak = measured(net, precision)
    assert 0.99 * peak < estimate.total < (1 + TENTH) * peak


def test_logits_are_held_in_chunks():
    net = TransformerConfig()  # 8,192 codes and 2,048 tokens: twice what is held
    few, many = (estimate_memory(net, "32-true", batch) for batch in (1, 8))
    assert few.logits == many.logits == 4 * MAX_LOGITS_BYTES


def test_shards_divide_the_memory():
    net = TransformerConfig()
    full = estimate_memory(net, "bf16-mixed", 4)
    shards = [estimate_memory(net, "bf16-mixed", 4, sharded=True, shard_size=n) for n in (1, 8, 64)]
    for size, shard in zip((1, 8, 64), shards, strict=True):
        assert shard.optimizer == pytest.approx(full.optimizer / size, rel=1e-3)
        assert shard.gradients == pytest.approx(full.gradients / size, rel=1e-3)
    assert shards[0].activations == shards[2].activations  # each device has its own batch
    assert shards[2].gathered == shards[0].gathered < full.gathered
    assert shards[2].total < shards[1].total < full.total
