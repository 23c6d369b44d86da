"""A decode step whose shapes never change, compiled: one graph serves all tokens of an answer.

On a GPU the graph is replayed as one CUDA graph, since launching the kernels of a token one by one
takes longer than they run. Keys and values are copied to a `StaticKVCache` after the prompt and the
query, which are computed as always.

Notation:
    B rows    T new tokens    V vocabulary
"""

from typing import Any, cast

import torch
from torch import Tensor

from delvm.models.attention import KVCache
from delvm.models.protocols import StudentNet
from delvm.models.static_cache import StaticKVCache

# Graphs per function, one for each number of rows and of tokens; beyond it, torch compiles no more.
MAX_GRAPHS = 64


class StaticStep:
    """Computes logits on static caches, which are kept: a graph is bound to their addresses."""

    def __init__(self, compile: bool = True) -> None:
        """
        Args:
            compile: False runs the same step eagerly.
        """
        self.compile = compile
        self._call: Any = _logits
        self._kept: list[StaticKVCache] = []
        self._used = 0
        if compile:
            import torch._dynamo.config

            limits = torch._dynamo.config
            limits.recompile_limit = max(limits.recompile_limit, MAX_GRAPHS)
            mode = "reduce-overhead" if torch.cuda.is_available() else "default"
            self._call = torch.compile(_logits, mode=mode, dynamic=False)

    def begin(self) -> None:
        """Start a batch, whose caches may replace those of the batch before."""
        self._used = 0

    def take_over(self, source: KVCache) -> StaticKVCache:
        """A static cache with the content of a cache: one of the batch before where it fits."""
        number, self._used = self._used, self._used + 1
        if number < len(self._kept) and self._kept[number].fits(source):
            self._kept[number].load(source)
            return self._kept[number]
        cache = StaticKVCache(source)
        self._kept[number:] = [cache]
        if self.compile:
            prefix = [] if cache.prefix is None else [cache.prefix.buffer]
            for each in (*cache.tensors(), *prefix):
                # A CUDA graph would copy any other input to an address of its own at each step.
                torch._dynamo.mark_static_address(each, guard=False)
        return cache

    def __call__(self, student: StudentNet, ids: Tensor, cache: StaticKVCache) -> Tensor:
        """Append tokens (B, T) to a cache; logits (B, T, V) of the token after each of them."""
        if not ids.is_cuda:
            return cast(Tensor, self._call(student, ids, cache))
        # The next replay overwrites its result, and must not be taken for a part of this one.
        cast(Any, torch.compiler).cudagraph_mark_step_begin()
        return cast(Tensor, self._call(student, ids, cache)).clone()


def _logits(student: StudentNet, ids: Tensor, cache: StaticKVCache) -> Tensor:
    logits: Tensor = student.head(student.forward_hidden(ids, cache))
    return logits
