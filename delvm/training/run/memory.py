"""Estimate of the memory that a training step takes per device, computed rather than measured.

Counted are the tensors that stay: weights, gradients and optimizer state, what the backward pass
needs of the forward pass, and the largest temporaries. Allocator overhead and the driver (1 to 2
GB) come on top.

Notation:
    C model width    V vocabulary    n tokens of a batch on one device
"""

from dataclasses import dataclass, replace

import torch

from delvm.models.embedding import CodebookEmbedding
from delvm.models.mlp import MLPKind
from delvm.models.transformer import InputEmbedding, Transformer, TransformerConfig
from delvm.training.losses import LOSS_CHUNK_ELEMENTS, MAX_LOGITS_BYTES

FLOAT32_BYTES = 4
# Float32 tensors that a loss makes of logits: their log-softmax, and the gradients of both.
LOSS_COPIES = 3


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per device.

    Attributes:
        weights: parameters, and the codebook.
        gradients: as they are kept from one batch to the next while gradients accumulate.
        optimizer: both moments of AdamW.
        gathered: weights for the time of their use: gathered from other devices, with the gradients
            that are sent back, or cast to bfloat16.
        activations: what the backward pass needs of the forward pass.
        logits: those that are held at once, with all that the loss makes of them.
        recompute: activations and gradients of one block that is recomputed.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    recompute: int

    @property
    def total(self) -> int:
        """Peak memory where gradients accumulate, and an upper bound elsewhere."""
        kept = self.weights + self.gradients + self.optimizer + self.gathered + self.activations
        return kept + max(self.logits, self.recompute)  # blocks are recomputed after the loss


def estimate_memory(
    net: TransformerConfig,
    precision: str,
    batch: int,
    *,
    sharded: bool = False,
    shard_size: int = 1,
    tokens: int | None = None,
    gpu: bool = True,
) -> MemoryEstimate:
    """What a training step of a student takes per device; masks of dropout are not counted.

    Args:
        net: the student; of every ``net.activation_checkpointing`` blocks one is recomputed.
        precision: 32-true, bf16-mixed or bf16-true.
        batch: sentences per device.
        sharded: whether the strategy shards the weights (fsdp2, hsdp, fsdp).
        shard_size: devices that share one copy of the weights.
        tokens: per sentence, as they are read; None = the student's complete context.
        gpu: whether on GPUs, where a norm is one kernel; on CPUs it is several operations, and
            attention in bfloat16 is `delvm.models.cpu.attention`.
    """
    param_bytes = 2 if precision == "bf16-true" else FLOAT32_BYTES
    compute_bytes = FLOAT32_BYTES if precision == "32-true" else 2
    block, outside, codebook = _parameter_counts(net)
    total = net.n_layers * block + outside
    held = -(-total // (shard_size if sharded else 1))
    n = batch * (tokens or net.max_seq_len)
    # Under autocast a learned embedding passes on float32, and so do all blocks after it.
    learned = net.embedding is not InputEmbedding.codebook
    residual = FLOAT32_BYTES if learned and compute_bytes < param_bytes and not sharded else None
    dtypes = _DTypes(compute_bytes, residual or compute_bytes, gpu)
    cast = total * compute_bytes if compute_bytes < param_bytes else 0
    recompute = net.activation_checkpointing
    return MemoryEstimate(
        weights=(held + codebook) * param_bytes,
        gradients=held * param_bytes,
        optimizer=2 * held * param_bytes,
        gathered=_gathered_params(block, outside, compute_bytes) if sharded else cast,
        activations=_activations(net, n, dtypes),
        logits=_logits(net, n, dtypes),
        recompute=n * _recompute(net, dtypes) if recompute else 0,
    )


def _parameter_counts(net: TransformerConfig) -> tuple[int, int, int]:
    """Parameters of one block and outside the blocks, and numbers in the codebook."""
    with torch.device("meta"):
        model = Transformer(replace(net, n_layers=1))
    block = sum(p.numel() for p in model.blocks.parameters())
    codebook = model.embed.codebook.numel() if isinstance(model.embed, CodebookEmbedding) else 0
    return block, model.parameter_count() - block, codebook


def _gathered_params(block: int, outside: int, compute_bytes: int) -> int:
    """Unsharded weights under a strategy that shards them.

    Those outside the blocks from the beginning of a step to its end; two blocks', since the next
    one is gathered while one computes; and the gradients of one of each, summed in float32.
    """
    return compute_bytes * (2 * outside + 3 * block) + FLOAT32_BYTES * max(block, outside)


@dataclass(frozen=True)
class _DTypes:
    """Bytes per number, and on what hardware.

    Attributes:
        matmul: of a number in a matrix product.
        residual: of a number that a block passes on to the next.
        gpu: as for `estimate_memory`.
    """

    matmul: int
    residual: int
    gpu: bool


def _norm(width: int, input_bytes: int, gpu: bool) -> int:
    """Bytes per row that a norm keeps.

    Its input, and one number; without a fused kernel the input and the result, both in float32.
    """
    return FLOAT32_BYTES + (input_bytes * width if gpu else 2 * FLOAT32_BYTES * width)


def _logits(net: TransformerConfig, n: int, dtypes: _DTypes) -> int:
    """Bytes of the logits that are held at once, and of what is made of them.

    First that is their losses, a chunk at a time in float32; then what they add to the head's
    gradient.
    """
    held = min(n * net.vocab_size, MAX_LOGITS_BYTES // dtypes.matmul)
    chunk = min(held, LOSS_CHUNK_ELEMENTS.get("cuda" if dtypes.gpu else "cpu", held))
    losses = FLOAT32_BYTES * chunk * (LOSS_COPIES + (dtypes.matmul < FLOAT32_BYTES))
    return dtypes.matmul * held + max(losses, dtypes.matmul * net.vocab_size * net.dim)


def _block(net: TransformerConfig, dtypes: _DTypes) -> int:
    """Bytes per token that a block keeps for its backward pass."""
    c, e = net.dim, dtypes.matmul
    ffn_dim = net.resolved_ffn_dim
    attention = 4 * e * c + FLOAT32_BYTES * net.n_heads  # q, k, v, result; one number per query
    if dtypes.gpu or e == FLOAT32_BYTES or net.dropout:  # torch's: with the storage of q, k and v
        attention += 2 * e * c
    if net.qk_norm:
        attention += 2 * net.n_heads * _norm(net.head_dim, e, dtypes.gpu)
    # gate, its SiLU, up, the product; or up and its GELU
    mlp = (4 if net.mlp is MLPKind.swiglu else 2) * e * ffn_dim
    return 2 * (_norm(c, dtypes.residual, dtypes.gpu) + e * c) + attention + mlp


def _recompute(net: TransformerConfig, dtypes: _DTypes) -> int:
    """Bytes per token of a block that is recomputed, and of two gradients within it."""
    # Where a later block is not recomputed, what that one had kept is freed by then.
    last = (net.n_layers - 1) % net.activation_checkpointing == 0
    return 2 * dtypes.matmul * net.resolved_ffn_dim + (_block(net, dtypes) if last else 0)


def _activations(net: TransformerConfig, n: int, dtypes: _DTypes) -> int:
    """What blocks, embedding, last norm and loss keep for the backward pass."""
    c, every = net.dim, net.activation_checkpointing
    recomputed = -(-net.n_layers // every) if every else 0
    blocks = (net.n_layers - recomputed) * _block(net, dtypes) + recomputed * dtypes.residual * c
    uses_codebook = net.embedding is InputEmbedding.codebook
    embedding = dtypes.matmul * net.codebook_dim if uses_codebook else 0
    # The loss keeps the gradients of the hidden states and of the head.
    norm = _norm(c, dtypes.residual, dtypes.gpu)
    rows = n * (blocks + embedding + norm + 2 * dtypes.residual * c)
    return rows + FLOAT32_BYTES * net.vocab_size * c
