"""The autoregressive student (and teacher): a decoder-only transformer over image tokens.

The architecture is the reference's (InternLM as DeLVM trains it): pre-norm RMSNorm, rotary
positions, SwiGLU, an untied head, and an input embedding that is the frozen codebook of the
tokenizer followed by a projection.

Notation:
    B batch    T tokens    C width    D width of a head    V vocabulary    d width of a code
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from delvm.models.attention import (
    Attention,
    AttentionBackend,
    KVCache,
    PackedDocuments,
    RMSNorm,
    precompute_rope,
)
from delvm.models.token_space import TokenSpace


class InputEmbedding(Enum):
    """Where input vectors come from: the tokenizer's frozen codebook, a table, or the head's."""

    codebook = "codebook"
    learned = "learned"
    tied = "tied"


class Init(Enum):
    """Initial weights: those of the reference's code, or N(0, 0.02) with scaled outputs (GPT-2)."""

    reference = "reference"
    gpt2 = "gpt2"


@dataclass
class TransformerConfig:
    """Architecture of a student or teacher; the defaults are the paper's 300M.

    Attributes:
        vocab_size: tokens, V; the tokenizer's number of codes.
        dim: C.
        ffn_dim: inner width of the MLP; None = 8/3 x width, rounded up to a multiple of 256.
        max_seq_len: the longest sequence, in tokens.
        bias: bias on q, k, v and the attention's output.
        codebook_dim: width of a code, d (used with ``embedding: codebook``).
        dropout: of attention and of what each block adds.
        drop_path: chance that the last block adds nothing to a row; earlier ones have less, in
            proportion to their depth (Huang et al. 2016).
        qk_norm: whether queries and keys are normalised, which keeps large models stable.
        attention: what computes it.
    """

    vocab_size: int = 8192
    dim: int = 1024
    n_layers: int = 22
    n_heads: int = 8
    ffn_dim: int | None = None
    max_seq_len: int = 2048
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    bias: bool = True
    embedding: InputEmbedding = InputEmbedding.codebook
    codebook_dim: int = 256
    dropout: float = 0.0
    drop_path: float = 0.0
    qk_norm: bool = False
    attention: AttentionBackend = AttentionBackend.auto
    init: Init = Init.reference

    @property
    def resolved_ffn_dim(self) -> int:
        """Inner width of the MLP."""
        return self.ffn_dim or 256 * math.ceil(self.dim * 8 / 3 / 256)

    @property
    def head_dim(self) -> int:
        """Width of one head, D."""
        return self.dim // self.n_heads


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020), without bias."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, c: TransformerConfig, depth: float) -> None:
        """Build a block that lies at a depth in [0, 1] of the network."""
        super().__init__()
        self.norm1 = RMSNorm(c.dim, eps=c.norm_eps)
        qk_norm = c.norm_eps if c.qk_norm else None
        self.attention = Attention(c.dim, c.n_heads, c.bias, c.dropout, qk_norm, c.attention)
        self.norm2 = RMSNorm(c.dim, eps=c.norm_eps)
        self.mlp = MLP(c.dim, c.resolved_ffn_dim)
        self.dropout = nn.Dropout(c.dropout)
        self.drop_path = depth * c.drop_path

    def forward(
        self,
        x: Tensor,
        table: Tensor,
        documents: PackedDocuments | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        x = x + self.kept(self.attention(self.norm1(x), table, documents, cache, layer))
        return x + self.kept(self.mlp(self.norm2(x)))

    def kept(self, added: Tensor) -> Tensor:
        """What is added (B, T, C) after dropout, and in training nothing at all to some rows."""
        added = self.dropout(added)
        if not self.training or not self.drop_path:
            return added
        keep = torch.rand(len(added), 1, 1, device=added.device) >= self.drop_path
        return added * keep / (1 - self.drop_path)


class CodebookEmbedding(nn.Module):
    """The tokenizer's frozen codebook (V, d), then a projection to the width."""

    codebook: Tensor

    def __init__(self, codes: int, code_width: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(codes, code_width))
        self.project = nn.Linear(code_width, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.project(F.embedding(ids, self.codebook))


class Transformer(nn.Module):
    """A decoder-only transformer: ids (B, T) -> logits (B, T, V)."""

    rotary: Tensor

    def __init__(
        self, config: TransformerConfig, codebook: Tensor | None = None, *, defer_init: bool = False
    ) -> None:
        """Build the model and draw its initial weights, seeded by torch's global generator.

        Args:
            config: the architecture.
            codebook: (V, d), the tokenizer's; kept frozen, needed with ``embedding: codebook``
                unless weights are loaded afterwards.
            defer_init: leave the blocks without storage, and the weights to `init_weights`.

        Raises:
            ValueError: the architecture contradicts itself or the codebook.
        """
        super().__init__()
        c = config
        _check(c, codebook)
        self.config = c
        self.seed = int(torch.randint(2**62, (), device="cpu"))  # of the initial weights
        self.tokenizer_fingerprint = ""  # of the tokenizer whose ids this model was trained on
        self.token_space = TokenSpace(
            c.vocab_size
        )  # all ids are pictures, unless a checkpoint says more
        self.embed: nn.Module = (
            CodebookEmbedding(c.vocab_size, c.codebook_dim, c.dim)
            if c.embedding is InputEmbedding.codebook
            else nn.Embedding(c.vocab_size, c.dim)
        )
        depths = torch.linspace(0, 1, c.n_layers, device="cpu").tolist()
        with torch.device("meta") if defer_init else nullcontext():
            self.blocks = nn.ModuleList(Block(c, depth) for depth in depths)
        self.norm = RMSNorm(c.dim, eps=c.norm_eps)
        self.head = nn.Linear(c.dim, c.vocab_size, bias=False)
        if c.embedding is InputEmbedding.tied and isinstance(self.embed, nn.Embedding):
            self.embed.weight = self.head.weight
        # Of each so many blocks, one is computed again in the backward pass; 0 = none.
        self.recompute = 0
        table = precompute_rope(c.max_seq_len, c.head_dim, c.rope_base)
        self.register_buffer("rotary", table, persistent=False)
        if not defer_init and not self.head.weight.is_meta:
            for _ in self.init_weights():
                pass
        if codebook is not None and isinstance(self.embed, CodebookEmbedding):
            self.embed.codebook.copy_(codebook)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Transformer":
        """Move or cast, as `nn.Module` does; angles stay float32, or late positions would blur."""
        super()._apply(fn, recurse)
        c = self.config
        self.rotary = precompute_rope(c.max_seq_len, c.head_dim, c.rope_base).to(self.rotary.device)
        return self

    def init_weights(self) -> Iterator[nn.Module]:
        """Draw the initial weights, all in one place; yield each block with its own, then all.

        Blocks get their storage here if they have none, so that whoever spreads them over
        processes holds one whole block at a time.

        ``reference`` is what the reference's code does (DESIGN, section 3): note that it scales
        the *up* projection by depth, and the down projection not at all.
        """
        c = self.config
        draws = torch.Generator().manual_seed(self.seed)
        reference = c.init is Init.reference
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            if block.mlp.up.weight.is_meta:
                block.to_empty(device="cpu")
            if reference:
                deep = 0.006 / math.sqrt(2 * number)
                stds = {"qkv": 0.006, "out": deep, "gate": 0.006, "up": deep, "down": 0.0015}
            else:
                deep = 0.02 / math.sqrt(2 * c.n_layers)
                stds = {"qkv": 0.02, "out": deep, "gate": 0.02, "up": 0.02, "down": deep}
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    std = stds[name.rsplit(".", 1)[-1]]
                    nn.init.normal_(module.weight, std=std, generator=draws)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                elif isinstance(module, RMSNorm):
                    nn.init.ones_(module.weight)
            yield block
        end = 0.0052 if reference else 0.02
        nn.init.normal_(self.head.weight, std=end, generator=draws)
        if isinstance(self.embed, CodebookEmbedding):
            # an ordinary start wants unit-variance inputs whatever the scale of the codes is
            std = end if reference else c.codebook_dim**-0.5
            nn.init.normal_(self.embed.project.weight, std=std, generator=draws)
        elif isinstance(self.embed, nn.Embedding):
            nn.init.normal_(self.embed.weight, std=end, generator=draws)
        yield self

    def forward_hidden(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, C), before the head.

        Args:
            input_ids: (B, T) int64, in [0, V).
            cache: keys and values of the tokens before ``input_ids``; it is extended in place.
            document_ids: (B, T), alike for the tokens of one document: documents do not see each
                other, and each begins at position 0. None = each row is one.

        Raises:
            ValueError: more tokens than the context holds, or documents on top of a cache.
        """
        past = cache.length if cache is not None else 0
        end = past + input_ids.shape[1]
        if end > self.config.max_seq_len:
            raise ValueError(f"{end} tokens for a context of {self.config.max_seq_len}")
        if document_ids is not None and cache is not None:
            raise ValueError("documents and a cache do not go together")
        packed = None if document_ids is None else PackedDocuments(document_ids)
        places = slice(past, end) if packed is None else packed.positions
        table = self.rotary[:, places].unsqueeze(-2)  # (2, T, 1, D / 2), or (2, B, T, 1, D / 2)
        x = self.embed(input_ids)
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled() and layer % self.recompute == 0:
                x = checkpoint(block, x, table, packed, use_reentrant=False)
            else:
                x = block(x, table, packed, cache, layer)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the next token at each position; arguments as in `forward_hidden`."""
        return self.head(self.forward_hidden(input_ids, cache, document_ids))

    def make_kv_cache(self, batch_size: int, max_seq_len: int | None = None) -> KVCache:
        """An empty cache for ``batch_size`` rows of up to ``max_seq_len`` tokens."""
        c, w = self.config, self.head.weight
        return KVCache(
            c.n_layers,
            batch_size,
            c.n_heads,
            max_seq_len or c.max_seq_len,
            c.head_dim,
            w.dtype,
            w.device,
        )

    def parameter_groups(self, weight_decay: float) -> Iterator[dict[str, object]]:
        """Parameters for the optimizer: matrices with decay; norms and biases without."""
        matrices: list[nn.Parameter] = []
        vectors: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                # By name, since a process that holds a part of a matrix may hold it as a vector.
                *_, owner, kind = name.split(".")
                (vectors if kind == "bias" or "norm" in owner else matrices).append(parameter)
        yield {"params": matrices, "weight_decay": weight_decay}
        yield {"params": vectors, "weight_decay": 0.0}

    def flops_per_token(self, length: int) -> int:
        """Floating-point operations that training takes a token, forward and backward.

        Six a weight of each matrix, and in each layer twelve a channel and visible token (half of
        ``length`` on average) for attention; what is computed again is not counted.
        """
        c = self.config
        blocks = c.n_layers * (4 * c.dim**2 + 3 * c.dim * c.resolved_ffn_dim)
        ends = c.vocab_size * c.dim
        if c.embedding is InputEmbedding.codebook:
            ends += c.codebook_dim * c.dim
        return 6 * (blocks + ends + c.n_layers * c.dim * length)

    def parameter_count(self) -> int:
        """Trained parameters; the frozen codebook is not one of them."""
        return sum(p.numel() for p in self.parameters())


def _check(c: TransformerConfig, codebook: Tensor | None) -> None:
    """Collect every fault of an architecture and raise one ValueError."""
    faults = []
    if c.dim % c.n_heads:
        faults.append(f"dim {c.dim} is not divisible by n_heads {c.n_heads}")
    elif c.head_dim % 2:
        faults.append(
            f"head_dim {c.head_dim} (dim / n_heads) is odd, rotary embeddings need an even one"
        )
    for name in ("dropout", "drop_path"):
        if not 0 <= (share := getattr(c, name)) < 1:
            faults.append(f"{name} {share} is not in [0, 1)")
    if codebook is not None and tuple(codebook.shape) != (c.vocab_size, c.codebook_dim):
        faults.append(
            f"codebook {tuple(codebook.shape)} is not (vocab_size {c.vocab_size}, "
            f"codebook_dim {c.codebook_dim})"
        )
    if faults:
        raise ValueError("; ".join(faults))
