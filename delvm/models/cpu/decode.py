"""A transformer's forward pass over a few new tokens on CPU, in one call of C++ (decode.cpp).

Decoding reads all weights for each token, so the speed of memory is its limit. PyTorch's layers
take several times as long: each has its own overhead, and attention over a cache copies it. The
C++ is compiled at its first use, and takes the same parameters and the same `KVCache`; whatever it
does not support is left to PyTorch.
"""

import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from delvm.models.attention import AttentionBackend, KVCache
from delvm.models.cpu.build import build_extension, kernel_works
from delvm.models.int8_cache import Int8KVCache
from delvm.models.mlp import SwiGLU
from delvm.models.norm import RMSNorm
from delvm.models.precision import has_native_bf16
from delvm.models.weight_precision import Int8Linear

# Tokens of all rows together, unless there is one of each row. With more, products are bound by
# computation, not by reading weights, and PyTorch's are faster.
MAX_TOKENS = 64
# With others, attention and so all of a token is left to PyTorch.
BACKENDS = (AttentionBackend.auto, AttentionBackend.cpu_flash)
_SMALL = 2**20  # parameters below which a second thread costs more than it saves


class _Linear(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias", "scale")]


_LINEARS = ("qkv", "out", "gate", "up", "down")


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("norm1", "norm2")),
        *((name, _Linear) for name in _LINEARS),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_int64) for n in ("n_layers", "dim", "n_heads", "ffn_dim", "max_seq_len")),
        ("eps", ctypes.c_double),
        ("rope", ctypes.c_void_p),
        ("layers", ctypes.POINTER(_Layer)),
        ("norm", ctypes.c_void_p),
    ]


class _Cache(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("buffer", "scales", "prefix", "prefix_scales")),
        *((n, ctypes.c_int64) for n in ("capacity", "prefix_capacity", "prefix_length", "length")),
    ]


class CPUDecoder:
    """The forward pass of one model over a few tokens; made once for each cache.

    The parameters must stay where they are as long as the decoder is used.
    """

    def __init__(self, model: Any) -> None:
        """
        Args:
            model: a `delvm.models.transformer.Transformer` that `supports`.
        """
        cfg, blocks = model.config, list(model.blocks)
        layers = (_Layer * len(blocks))()
        self._tensors: list[Tensor] = []  # kept, since C++ holds their addresses
        for layer, block in zip(layers, blocks, strict=True):
            layer.norm1 = self._address(block.norm1.weight)
            layer.norm2 = self._address(block.norm2.weight)
            for name, linear in zip(_LINEARS, _linears(block), strict=True):
                scale = self._address(getattr(linear, "scale", None))
                address = self._address(linear.weight), self._address(linear.bias), scale
                setattr(layer, name, _Linear(*address))
        self._model = _Model(
            cfg.n_layers,
            cfg.dim,
            cfg.n_heads,
            cfg.resolved_ffn_dim,
            model.rope.shape[1],
            cfg.norm_eps,
            self._address(model.rope),
            layers,
            self._address(model.norm.weight),
        )
        self._int8 = has_int8_blocks(model)
        self._bf16 = model.norm.weight.dtype is torch.bfloat16
        self._is_small = sum(t.numel() for t in self._tensors) < _SMALL

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._tensors.append(tensor)
        return tensor.data_ptr()

    def __call__(self, x: Tensor, cache: KVCache) -> Tensor:
        """Embeddings (B, T, C) -> hidden states (B, T, C) after the last norm; extends ``cache``.

        The length of the cache is left to the caller.

        Raises:
            ValueError: the cache is of another number of rows, or has no room for T more tokens.
        """
        b, t, _ = x.shape
        prefix = cache.prefix
        shared = cache._start  # the prefix may have more tokens by now
        rows, capacity, used = cache.buffer.shape[2], cache.buffer.shape[-2], cache.length - shared
        if b != rows or used + t > capacity:  # C++ would write beyond the buffer
            raise ValueError(
                f"{b} rows of {used} + {t} tokens do not fit into a key-value cache of {rows} rows "
                f"and {capacity} tokens"
            )
        arguments = _Cache(
            *_addresses(cache),
            *((None, None) if prefix is None else _addresses(prefix)),
            capacity,
            0 if prefix is None else prefix.buffer.shape[-2],
            shared,
            used,
        )
        result = torch.empty_like(x)
        buffer = x.to(torch.float32, copy=True)
        function = _library().delvm_decode_bf16 if self._bf16 else _library().delvm_decode_float
        function(
            ctypes.byref(self._model),
            ctypes.byref(arguments),
            ctypes.c_void_p(buffer.data_ptr()),
            ctypes.c_void_p(result.data_ptr()),
            *map(ctypes.c_int64, (b, t, 1 if self._is_small else torch.get_num_threads())),
            ctypes.c_bool(self._int8),
        )
        return result


def _addresses(cache: KVCache) -> tuple[int, int | None]:
    """Of the buffer, and of the scales where it is int8."""
    scales = cache.scales.data_ptr() if isinstance(cache, Int8KVCache) else None
    return cache.buffer.data_ptr(), scales


def cpu_decoder(model: Any, input_ids: Tensor, cache: KVCache) -> CPUDecoder | None:
    """What computes these tokens (B, T) on top of a cache; None where PyTorch's layers do.

    Those do so with gradients, in training, under autocast, and with ``attention=sdpa``.
    """
    if (
        input_ids.device.type != "cpu"
        or not input_ids.numel()
        or (input_ids.shape[1] > 1 and input_ids.numel() > MAX_TOKENS)
        or model.training
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or model.config.attention not in BACKENDS
    ):
        return None
    if cache.decoder is None:
        dtype = torch.int8 if has_int8_blocks(model) else model.norm.weight.dtype
        caches = (cache,) if cache.prefix is None else (cache, cache.prefix)
        fits = supports(model) and all(each.buffer.dtype is dtype for each in caches)
        cache.decoder = CPUDecoder(model) if fits else False
    return cache.decoder or None


def supports(model: Any) -> bool:
    """Whether `CPUDecoder` computes what a `Transformer` computes: its blocks and their dtype.

    It takes RMSNorm and SwiGLU in float32, bfloat16 or int8, on a CPU that has bfloat16. Modules
    with hooks, and parametrized, sharded or replaced ones, are left to PyTorch.
    """
    cfg, dtype = model.config, model.norm.weight.dtype
    if dtype not in (torch.float32, torch.bfloat16) or cfg.qk_norm:
        return False
    if any(size % 32 for size in (cfg.dim, cfg.resolved_ffn_dim, cfg.head_dim)):
        return False
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules() if m is not model):
        return False
    if not all(map(_is_plain, _tensors(model))):
        return False
    parameters = (*model.embed.parameters(), *model.blocks.parameters())
    if any(parameter.dtype is not dtype for parameter in parameters):
        return False
    kinds = set()
    for block in model.blocks:
        if (type(block.norm1), type(block.norm2), type(block.mlp)) != (RMSNorm, RMSNorm, SwiGLU):
            return False
        kinds |= {type(linear) for linear in _linears(block)}
        if any(
            linear.scale.dtype is not torch.float32
            for linear in _linears(block)
            if type(linear) is Int8Linear
        ):
            return False
    return kinds in ({nn.Linear}, {Int8Linear}) and type(model.norm) is RMSNorm and available()


def has_int8_blocks(model: Any) -> bool:
    """Whether the weights are int8; `supports` refuses a model where only some are."""
    return any(isinstance(block.attention.qkv, Int8Linear) for block in model.blocks)


def kv_cache_class(model: Any) -> type[KVCache]:
    """What keeps keys and values: in int8 where the weights are, and this decodes."""
    is_int8 = model.config.attention in BACKENDS and has_int8_blocks(model) and supports(model)
    return Int8KVCache if is_int8 else KVCache


def _linears(block: Any) -> tuple[Any, ...]:
    """The linear layers of a block, in the order of _LINEARS."""
    attention, mlp = block.attention, block.mlp
    return attention.qkv, attention.out, mlp.gate, mlp.up, mlp.down


def _tensors(model: Any) -> Iterator[Tensor]:
    yield model.rope
    yield from model.norm.parameters()
    yield from model.blocks.parameters()
    yield from model.blocks.buffers()


def _is_plain(tensor: Tensor) -> bool:
    kinds = (nn.Parameter, Tensor)
    return type(tensor) in kinds and tensor.device.type == "cpu" and tensor.is_contiguous()


@cache
def available() -> bool:
    """Whether the C++ works here; if not although bfloat16 is native, log why, once."""
    # AMX alone is not enough: the products are instructions of AVX-512.
    has_products = has_native_bf16("cpu") and torch.cpu.get_capabilities().get("avx512_bf16")
    fallback = "PyTorch for decoding on CPU (several times slower)"
    return bool(has_products) and kernel_works(_library, fallback)


@cache
def _library() -> ctypes.CDLL:
    return build_extension(Path(__file__).with_suffix(".cpp"), "-mavx512bf16")
