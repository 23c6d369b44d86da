"""The memory that is computed is the memory that a step takes, counted tensor by tensor."""

import weakref
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from delvm.models.transformer import InputEmbedding, Transformer, TransformerConfig
from delvm.training.config import StrategyName
from delvm.training.losses import MAX_LOGITS_BYTES, chunked_linear_loss, cross_entropy
from delvm.training.memory import memory

NET = TransformerConfig(512, dim=128, n_layers=4, n_heads=4, max_seq_len=256, codebook_dim=16)
BATCH = 2
TENTH = 0.1  # how much more may be told than is there; a hundredth less


class Live(TorchDispatchMode):
    """Bytes of the tensors that are there, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: dict[int, int] = {}

    def count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.seen:
            self.seen[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.gone, key)

    def gone(self, key: int) -> None:
        self.now -= self.seen.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_iter(out):
            if isinstance(each, torch.Tensor):
                self.count(each)
        return out


def measured(net: TransformerConfig, precision: str, recompute: int) -> tuple[int, int, int]:
    """One step after another, as where gradients accumulate.

    Returns:
        bytes of the model and all that is kept of it; those that the forward pass adds; and the
        most that was there.
    """
    torch.manual_seed(0)
    codebook = torch.randn(net.vocab_size, net.codebook_dim)
    net = replace(net, activation_checkpointing=recompute)
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
    return kept, forward, live.most


@pytest.mark.parametrize("recompute", [0, 1, 2])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_step_takes_what_is_told(precision, recompute):
    told = memory(NET, StrategyName.single, precision, BATCH, recompute=recompute, gpu=False)
    kept, forward, most = measured(NET, precision, recompute)
    assert told.weights + told.gradients + told.optimizer == pytest.approx(kept, rel=0.01)
    # what the loss adds comes after the forward pass, and copies are counted apart
    assert told.activations + told.copies > 0.99 * forward
    assert 0.99 * most < told.total < (1 + TENTH) * most


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
def test_whatever_the_student(changes, precision):
    net = replace(NET, **changes)
    told = memory(net, StrategyName.single, precision, BATCH, gpu=False)
    _, _, most = measured(net, precision, 0)
    assert 0.99 * most < told.total < (1 + TENTH) * most


def test_logits_are_held_a_stretch_at_a_time():
    net = TransformerConfig()  # 8,192 codes and 2,048 tokens: twice what is held
    few, many = (memory(net, StrategyName.single, "32-true", batch) for batch in (1, 8))
    assert few.logits == many.logits == 4 * MAX_LOGITS_BYTES


def test_parts_are_smaller_by_as_many_as_there_are():
    net = TransformerConfig()
    whole = memory(net, StrategyName.ddp, "bf16-mixed", 4)
    parts = [memory(net, StrategyName.fsdp2, "bf16-mixed", 4, shard=n) for n in (1, 8, 64)]
    for shard, part in zip((1, 8, 64), parts, strict=True):
        assert part.optimizer == pytest.approx(whole.optimizer / shard, rel=1e-3)
        assert part.gradients == pytest.approx(whole.gradients / shard, rel=1e-3)
    assert parts[0].activations == parts[2].activations  # each has a batch of its own
    assert parts[2].copies == parts[0].copies < whole.copies
    assert parts[2].total < parts[1].total < whole.total
