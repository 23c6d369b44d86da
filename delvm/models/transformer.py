"""The autoregressive student (and teacher): a decoder-only transformer over image tokens.

The architecture is DeLVM's (arXiv 2402.04841, trained in InternLM): pre-norm RMSNorm, rotary
positions, SwiGLU, an untied head, and as input embedding the tokenizer's frozen codebook followed
by a linear projection.

Notation:
    B batch    T tokens    C dim (model width)    D head dim    V vocabulary    d codebook dim
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from delvm.models.attention import Attention, AttentionBackend, KVCache, PackedDocuments
from delvm.models.config import below_minimum, config_from_settings, raise_errors
from delvm.models.cpu.decode import cpu_decoder, kv_cache_class
from delvm.models.embedding import CodebookEmbedding
from delvm.models.mlp import MLPKind, build_mlp
from delvm.models.norm import LayerNorm, NormKind, RMSNorm, build_norm
from delvm.models.precision import autocast_dtype
from delvm.models.rope import precompute_rope
from delvm.models.token_space import TokenSpace


class InputEmbedding(Enum):
    """The input embedding: frozen codebook + projection, a learned table, or tied to the head."""

    codebook = "codebook"
    learned = "learned"
    tied = "tied"


class Init(Enum):
    """``reference`` is DeLVM's, ``gpt2`` N(0, 0.02) with scaled outputs, ``normal`` N(0, 0.02)."""

    reference = "reference"
    gpt2 = "gpt2"
    normal = "normal"


@dataclass
class TransformerConfig:
    """Architecture of a student or teacher; the defaults are the paper's 300M model.

    Attributes:
        vocab_size: number of token ids, V; at least the tokenizer's codebook size.
        dim: C.
        n_layers: number of blocks.
        n_heads: attention heads per block.
        ffn_dim: hidden size of the MLP; None = 8/3 x dim, rounded up to a multiple of 256 (SwiGLU).
        max_seq_len: context length in tokens.
        rope_base: base of the rotary angles.
        norm_eps: eps of RMSNorm.
        bias: whether q, k, v and the attention output have a bias.
        embedding: the input embedding.
        codebook_dim: dimension of a code, d (with ``embedding: codebook``).
        dropout: of attention weights and residual branches, in [0, 1).
        drop_path: stochastic depth rate of the last block, in [0, 1); it grows linearly from 0 in
            the first block (Huang et al. 2016).
        qk_norm: whether queries and keys are normalized, which keeps large models stable.
        attention: what computes attention.
        init: initial weights, an `Init`; LVM's are ``normal``.
        activation_checkpointing: recompute one of every N blocks in the backward pass, which
            saves memory and takes time; 0 = off. It does not change what the model computes.
        norm, mlp, mlp_bias: of each block. DeLVM's "ViT" has layernorm, gelu_tanh and
            ``ffn_dim: null``, which is 4 x dim there.
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
    activation_checkpointing: int = 0
    norm: NormKind = NormKind.rmsnorm
    mlp: MLPKind = MLPKind.swiglu
    mlp_bias: bool = False

    @property
    def resolved_ffn_dim(self) -> int:
        """Hidden size of the MLP."""
        swiglu = 256 * math.ceil(self.dim * 8 / 3 / 256)
        return self.ffn_dim or (swiglu if self.mlp is MLPKind.swiglu else 4 * self.dim)

    @property
    def head_dim(self) -> int:
        """Dimension of one head, D."""
        return self.dim // self.n_heads

    def validate(self) -> list[str]:
        """All errors of this architecture, one line each; empty when it can be built."""
        sizes = ("vocab_size", "dim", "n_layers", "n_heads", "max_seq_len", "codebook_dim")
        errors = below_minimum(self, 1, *sizes)
        errors += below_minimum(self, 0, "activation_checkpointing")
        if not errors:
            if self.dim % self.n_heads:
                errors.append(f"dim {self.dim} is not divisible by n_heads {self.n_heads}")
            elif self.head_dim % 2:
                errors.append(
                    f"head_dim {self.head_dim} (dim / n_heads) is odd, rotary embeddings need an "
                    "even one"
                )
        for name in ("dropout", "drop_path"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                errors.append(f"{name} {rate} is not in [0, 1)")
        return errors


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, cfg: TransformerConfig, drop_path_rate: float) -> None:
        """Create a block that skips its residual branches at ``drop_path_rate`` in training."""
        super().__init__()
        self.norm1 = build_norm(cfg.norm, cfg.dim, cfg.norm_eps)
        qk_norm_eps = cfg.norm_eps if cfg.qk_norm else None
        self.attention = Attention(
            cfg.dim, cfg.n_heads, cfg.bias, cfg.dropout, qk_norm_eps, cfg.attention
        )
        self.norm2 = build_norm(cfg.norm, cfg.dim, cfg.norm_eps)
        self.mlp = build_mlp(cfg.mlp, cfg.dim, cfg.resolved_ffn_dim, cfg.mlp_bias)
        self.dropout = nn.Dropout(cfg.dropout)
        self.drop_path_rate = drop_path_rate

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        documents: PackedDocuments | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        x = x + self._residual_dropout(self.attention(self.norm1(x), rope, documents, cache, layer))
        return x + self._residual_dropout(self.mlp(self.norm2(x)))

    def _residual_dropout(self, branch: Tensor) -> Tensor:
        """Apply dropout and stochastic depth (drop path) to a residual branch (B, T, C)."""
        branch = self.dropout(branch)
        if not self.training or not self.drop_path_rate:
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path_rate
        return branch * keep / (1 - self.drop_path_rate)


class Transformer(nn.Module):
    """A decoder-only transformer: token ids (B, T) -> logits (B, T, V).

    Attributes:
        tokenizer_fingerprint: of the tokenizer whose ids the model was trained on; "" = unknown.
        resize: how the images it was trained on were made square, a `ResizeMode`; "" = unknown.
        token_space: which ids are image tokens and which are special tokens.
        seed: of the initial weights.
    """

    rope: Tensor

    def __init__(
        self, config: TransformerConfig, codebook: Tensor | None = None, *, defer_init: bool = False
    ) -> None:
        """Build the model with initial weights, seeded by torch's global generator.

        Args:
            config: the architecture.
            codebook: (V, d), of the tokenizer; it stays frozen. Needed with ``embedding:
                codebook`` unless weights or `load_codebook` follow.
            defer_init: leave the blocks on the meta device and the weights to `init_weights`.

        Raises:
            ValueError: the config is not valid, or the codebook has another shape.
        """
        super().__init__()
        raise_errors(config.validate())
        self.config = cfg = config
        self.seed = int(torch.randint(2**62, (), device="cpu"))
        self.tokenizer_fingerprint = self.resize = ""
        self.token_space = TokenSpace(cfg.vocab_size)
        self.embed: nn.Module = (
            CodebookEmbedding(cfg.vocab_size, cfg.codebook_dim, cfg.dim)
            if cfg.embedding is InputEmbedding.codebook
            else nn.Embedding(cfg.vocab_size, cfg.dim)
        )
        depths = torch.linspace(0, 1, cfg.n_layers, device="cpu").tolist()
        with torch.device("meta") if defer_init else nullcontext():
            self.blocks = nn.ModuleList(Block(cfg, depth * cfg.drop_path) for depth in depths)
        self.norm = build_norm(cfg.norm, cfg.dim, cfg.norm_eps)
        self.head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        if cfg.embedding is InputEmbedding.tied and isinstance(self.embed, nn.Embedding):
            self.embed.weight = self.head.weight
        self.register_buffer("rope", self.rope_table(), persistent=False)
        if not defer_init and not self.head.weight.is_meta:
            for _ in self.init_weights():
                pass
        if codebook is not None and isinstance(self.embed, CodebookEmbedding):
            self.embed.load_codebook(codebook)

    @classmethod
    def from_settings(cls, *, defer_init: bool = False, **settings: Any) -> Self:
        """Build the model from the fields of `TransformerConfig` as keyword arguments.

        Enums may be given by name, so this can be a ``_target_`` of Hydra.

        Raises:
            ValueError: a field is unknown, or the config is not valid.
        """
        return cls(config_from_settings(TransformerConfig, settings), defer_init=defer_init)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, V."""
        return self.config.vocab_size

    @property
    def max_seq_len(self) -> int:
        """Context length in tokens."""
        return self.config.max_seq_len

    def load_codebook(self, codebook: Tensor, fingerprint: str) -> None:
        """Take over the codebook (V, d) of a tokenizer, and record the tokenizer's fingerprint.

        An embedding other than ``codebook`` has no codebook; only the fingerprint is recorded.

        Raises:
            ValueError: the codebook has another shape than the embedding's.
        """
        if isinstance(self.embed, CodebookEmbedding):
            self.embed.load_codebook(codebook)
        self.tokenizer_fingerprint = fingerprint

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast, as in `nn.Module`; rotary angles stay float32, or late positions blur."""
        cast(Any, super())._apply(fn, recurse)
        self.rope = self.rope_table().to(self.rope.device)
        return self

    def rope_table(self) -> Tensor:
        """Cosines and sines of the rotary angles, (2, max_seq_len, D / 2) float32."""
        return precompute_rope(self.max_seq_len, self.config.head_dim, self.config.rope_base)

    def init_weights(self) -> Iterator[nn.Module]:
        """Set all initial weights; yield each block when it is done, and at last the model.

        A block on the meta device gets its storage here. So whoever shards the model between two
        steps of this iterator has the full weights of only one block in memory.

        ``Init.reference`` is what DeLVM's code does: it scales the *up* projection by depth, and
        the down projection not at all.
        """
        cfg = self.config
        generator = torch.Generator().manual_seed(self.seed)
        reference = cfg.init is Init.reference
        for number, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            if block.mlp.up.weight.is_meta:
                block.to_empty(device="cpu")
            if reference:
                scaled = 0.006 / math.sqrt(2 * number)
                stds = {"qkv": 0.006, "out": scaled, "gate": 0.006, "up": scaled, "down": 0.0015}
            else:
                scaled = 0.02 / math.sqrt(2 * cfg.n_layers if cfg.init is Init.gpt2 else 1)
                stds = {"qkv": 0.02, "out": scaled, "gate": 0.02, "up": 0.02, "down": scaled}
            if reference and cfg.mlp is not MLPKind.swiglu:
                stds |= {"up": 0.0015, "down": 0.0015}  # which its code takes for no part of SwiGLU
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear):
                    std = stds[name.rsplit(".", 1)[-1]]
                    nn.init.normal_(module.weight, std=std, generator=generator)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
                elif isinstance(module, RMSNorm | LayerNorm):
                    nn.init.ones_(module.weight)
                    if isinstance(module, LayerNorm):
                        nn.init.zeros_(module.bias)
            yield block
        std = 0.0052 if reference else 0.02
        nn.init.normal_(self.head.weight, std=std, generator=generator)
        if isinstance(self.embed, CodebookEmbedding):
            # The others assume inputs of unit variance, whatever the scale of the codes is.
            embed_std = std if reference else cfg.codebook_dim**-0.5
            nn.init.normal_(self.embed.project.weight, std=embed_std, generator=generator)
        elif isinstance(self.embed, nn.Embedding):
            nn.init.normal_(self.embed.weight, std=std, generator=generator)
        yield self

    def forward_hidden(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
        positions: Tensor | None = None,
        target_embed: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, C), after the last norm and before the head.

        Args:
            input_ids: (B, T) int64, in [0, V).
            cache: keys and values of the tokens before ``input_ids``; it is extended in place.
            document_ids: (B, T), equal for the tokens of one document. Documents do not attend to
                each other, and positions restart at 0 in each. None = each row is one document.
            positions: (B, T) int64, of the rotary angles; None = those of raster order. A token
                attends to those before it in the row, whatever the positions are.
            target_embed: (B, T, C) added to the input embeddings, of the position to predict.

        Raises:
            ValueError: more tokens than max_seq_len, or a cache with any argument after it.
        """
        count = input_ids.shape[1]
        index = slice(0, count) if cache is None else cache.positions(count)
        if isinstance(index, slice) and index.stop > self.max_seq_len:
            raise ValueError(f"{index.stop} tokens exceed max_seq_len {self.max_seq_len}")
        if cache and any(each is not None for each in (document_ids, positions, target_embed)):
            raise ValueError("document_ids and positions cannot be combined with a cache")
        if cache is not None and (decoder := cpu_decoder(self, input_ids, cache)):
            x = decoder(self.embed(input_ids), cache)
            cache.advance(count)
            return x
        documents = None if document_ids is None else PackedDocuments(document_ids)
        index = index if documents is None else documents.positions
        # (2, T, 1, D / 2) or (2, B, T, 1, D / 2)
        rope = self.rope[:, index if positions is None else positions].unsqueeze(-2)
        x = self.embed(input_ids)
        if target_embed is not None:
            x = x + target_embed.to(x.dtype)
        every = self.config.activation_checkpointing
        for layer, block in enumerate(self.blocks):
            if every and torch.is_grad_enabled() and layer % every == 0:
                x = checkpoint(block, x, rope, documents, use_reentrant=False)
            else:
                x = block(x, rope, documents, cache, layer)
        if cache is not None:
            cache.advance(count)
        return cast(Tensor, self.norm(x))

    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache | None = None,
        document_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the next token at each position; arguments as in `forward_hidden`."""
        return cast(Tensor, self.head(self.forward_hidden(input_ids, cache, document_ids)))

    def make_kv_cache(
        self, batch_size: int, max_seq_len: int | None = None, prefix: KVCache | None = None
    ) -> KVCache:
        """A cache for ``batch_size`` rows of up to ``max_seq_len`` tokens (None = all).

        It is empty, or continues ``prefix``, the cache of one row that all rows share.
        """
        cfg, weight, length = self.config, self.head.weight, max_seq_len or self.max_seq_len
        shape = cfg.n_layers, batch_size, cfg.n_heads, length, cfg.head_dim
        return kv_cache_class(self)(*shape, autocast_dtype(weight), weight.device, prefix)

    def parameter_groups(self, weight_decay: float) -> Iterator[dict[str, Any]]:
        """Parameter groups of the optimizer: matrices decay, norms and biases do not."""
        decay: list[nn.Parameter] = []
        no_decay: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                # By name, since a process may hold its shard of a matrix as a vector.
                *_, owner, kind = name.split(".")
                (no_decay if kind == "bias" or "norm" in owner else decay).append(parameter)
        yield {"params": decay, "weight_decay": weight_decay}
        yield {"params": no_decay, "weight_decay": 0.0}

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs of training per token, forward and backward, for sequences of ``seq_len`` tokens.

        6 per weight of each matrix, plus 12 per layer, channel and attended token (on average half
        of ``seq_len``) for attention. Recomputation is not counted.
        """
        cfg = self.config
        matrices = 3 if cfg.mlp is MLPKind.swiglu else 2
        blocks = cfg.n_layers * (4 * cfg.dim**2 + matrices * cfg.dim * cfg.resolved_ffn_dim)
        ends = cfg.vocab_size * cfg.dim
        if cfg.embedding is InputEmbedding.codebook:
            ends += cfg.codebook_dim * cfg.dim
        return 6 * (blocks + ends + cfg.n_layers * cfg.dim * seq_len)

    def parameter_count(self) -> int:
        """Number of trained parameters; the frozen codebook does not count."""
        return sum(p.numel() for p in self.parameters())
