"""How much memory a training step takes on each device, counted rather than tried.

What is counted is what stays: weights and all that the optimizer keeps of them, what the backward
pass needs of the forward pass, and the largest things that come and go. What an allocator wastes
and what a driver takes (1 to 2 GB) comes on top.

Notation:
    C width    I inner width of the MLP    H heads    V vocabulary    d width of a code
    n tokens of a batch on one device
"""

from dataclasses import dataclass, replace

import torch

from delvm.models.transformer import (
    CodebookEmbedding,
    InputEmbedding,
    Transformer,
    TransformerConfig,
)
from delvm.training.config import StrategyName
from delvm.training.losses import LOSS_CHUNK_ELEMENTS, MAX_LOGITS_BYTES

FLOAT = 4
# What a loss makes of logits in float32: their log-softmax, and the gradients of both.
LOSS_COPIES = 3


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        weights: parameters, and the codebook.
        gradients: as they are kept from one batch to the next while gradients accumulate.
        optimizer: both moments of AdamW.
        copies: of weights for the time of their use: gathered from other devices, with the
            gradients that are sent back, or cast to bfloat16.
        activations: what the backward pass needs of the forward pass.
        logits: those that are there at once, with all that the loss makes of them.
        again: what one block leaves when it is computed again, and its gradients.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    logits: int
    again: int

    @property
    def total(self) -> int:
        """All that is there at once where gradients accumulate, and an upper bound elsewhere."""
        stays = self.weights + self.gradients + self.optimizer + self.copies + self.activations
        return stays + max(self.logits, self.again)  # a block is computed again after the loss


def memory(
    net: TransformerConfig,
    strategy: StrategyName,
    precision: str,
    batch: int,
    *,
    tokens: int | None = None,
    shard: int = 1,
    recompute: int = 0,
    gpu: bool = True,
) -> Memory:
    """What a step of training a student takes on each device; masks of dropout are not counted.

    Args:
        net: the student.
        strategy: how it is spread.
        precision: 32-true, bf16-mixed or bf16-true.
        batch: sentences on each device.
        tokens: of a sentence, as they are read; None = the student's whole context.
        shard: devices that hold one copy of the weights among them (fsdp2, hsdp, fsdp).
        recompute: of so many blocks one is computed again (`Transformer.recompute`); 0 = none.
        gpu: whether on GPUs, where a norm is one kernel; on processors it is several operations,
            and attention in bfloat16 is `delvm.models.cpu.attention`.
    """
    spread = strategy not in (StrategyName.single, StrategyName.ddp)
    kept = 2 if precision == "bf16-true" else FLOAT  # bytes of a weight
    used = FLOAT if precision == "32-true" else 2  # e
    block, outside, codebook = _counts(net)
    parts = shard if spread else 1
    whole = net.n_layers * block + outside
    here = -(-whole // parts)
    n = batch * (tokens or net.max_seq_len)
    # Under autocast an embedding of one's own hands on float32, and so do all blocks after it.
    wide = net.embedding is not InputEmbedding.codebook and used < kept and not spread
    held = _Held(used, FLOAT if wide else used, gpu)
    return Memory(
        weights=here * kept + codebook * kept,
        gradients=here * kept,
        optimizer=2 * here * kept,
        copies=_gathered(block, outside, used) if spread else whole * (used if used < kept else 0),
        activations=_activations(net, n, held, recompute),
        logits=_logits(net, n, held),
        again=n * _again(net, held, recompute) if recompute else 0,
    )


def _counts(net: TransformerConfig) -> tuple[int, int, int]:
    """Parameters of one block and outside the blocks, and numbers in the codebook."""
    with torch.device("meta"):
        model = Transformer(replace(net, n_layers=1))
    block = sum(p.numel() for p in model.blocks.parameters())
    codebook = model.embed.codebook.numel() if isinstance(model.embed, CodebookEmbedding) else 0
    return block, model.parameter_count() - block, codebook


def _gathered(block: int, outside: int, used: int) -> int:
    """Whole weights under a strategy that spreads them.

    Those outside the blocks from the beginning of a step to its end; two blocks', since the next
    comes while one computes; and the gradients of one of each, summed in float32.
    """
    return used * (2 * outside + 3 * block) + FLOAT * max(block, outside)


@dataclass(frozen=True)
class _Held:
    """In what numbers, and where.

    Attributes:
        e: bytes of a number in which products are taken.
        r: of one that a block hands on to the next.
        gpu: as of `memory`.
    """

    e: int
    r: int
    gpu: bool


def _norm(width: int, r: int, gpu: bool) -> int:
    """Bytes a row that a norm leaves.

    Its input, and one number; without a kernel the input and the result, both in float32.
    """
    return FLOAT + (r * width if gpu else 2 * FLOAT * width)


def _logits(net: TransformerConfig, n: int, h: _Held) -> int:
    """Bytes of the logits that are there at once, and of what is made of them.

    First that is their losses, a few at a time in float32; then what they add to the head's
    gradient.
    """
    there = min(n * net.vocab_size, MAX_LOGITS_BYTES // h.e)
    exact = min(there, LOSS_CHUNK_ELEMENTS.get("cuda" if h.gpu else "cpu", there))
    losses = FLOAT * exact * (LOSS_COPIES + (h.e < FLOAT))
    return h.e * there + max(losses, h.e * net.vocab_size * net.dim)


def _block(net: TransformerConfig, h: _Held) -> int:
    """Bytes a token that a block leaves for its backward pass."""
    c, e = net.dim, h.e
    attention = 4 * e * c + FLOAT * net.n_heads  # q, k, v and the result; a number a query
    if h.gpu or e == FLOAT or net.dropout:  # torch's: with the storage that q, k and v came in
        attention += 2 * e * c
    if net.qk_norm:
        attention += 2 * net.n_heads * _norm(net.head_dim, e, h.gpu)
    mlp = 4 * e * net.resolved_ffn_dim  # gate, its SiLU, up, the product
    return 2 * (_norm(c, h.r, h.gpu) + e * c) + attention + mlp


def _again(net: TransformerConfig, h: _Held, recompute: int) -> int:
    """Bytes a token of a block that is computed again, and of two gradients within it."""
    # Where a later block is not computed again, what that one had kept is gone by then.
    last = (net.n_layers - 1) % recompute == 0
    return 2 * h.e * net.resolved_ffn_dim + (_block(net, h) if last else 0)


def _activations(net: TransformerConfig, n: int, h: _Held, recompute: int) -> int:
    """What the blocks, the embedding, the last norm and the loss leave for the backward pass."""
    c = net.dim
    again = -(-net.n_layers // recompute) if recompute else 0
    blocks = (net.n_layers - again) * _block(net, h) + again * h.r * c
    embedding = h.e * net.codebook_dim if net.embedding is InputEmbedding.codebook else 0
    # The loss leaves the gradients of the hidden states and of the head.
    rows = n * (blocks + embedding + _norm(c, h.r, h.gpu) + 2 * h.r * c)
    return rows + FLOAT * net.vocab_size * c
