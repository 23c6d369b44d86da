"""Prompting with a prefix that is computed once, and shared by all rows that continue it.

The pairs of a prompt are the same for all queries. `Engine` runs them through the student once, as
one row, and keeps their keys and values: queries in a batch attend to the same ones, and so do
later calls with the same pairs, as long as the weights are the same.
"""

import inspect
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from delvm.inference.sampling import generate
from delvm.models.protocols import StudentNet

MAX_PREFIXES = 4  # prompts that are kept; the least recently used goes first


class Engine:
    """Generates with one student."""

    def __init__(self, student: StudentNet, max_prefixes: int = MAX_PREFIXES) -> None:
        """
        Args:
            student: in evaluation mode. One without a key-value cache that takes a ``prefix`` is
                given the complete rows.
            max_prefixes: prompts whose keys and values are kept; 0 keeps none between calls.
        """
        self.student, self.max_prefixes = student, max_prefixes
        self._prefixes: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        make: Any = getattr(student, "make_kv_cache", None)
        self._can_share = make is not None and "prefix" in inspect.signature(make).parameters
        self.prefills = 0  # prompts that were computed

    @torch.inference_mode()
    def generate(
        self,
        prompt: Tensor,
        queries: Tensor,
        max_new_tokens: int,
        **options: Any,
    ) -> Tensor:
        """Continue prompt + query by ``max_new_tokens`` image tokens, for each query.

        Args:
            prompt: (P,) int64, what all rows begin with; may be empty.
            queries: (B, Q) int64, Q >= 1.
            max_new_tokens: of each answer.
            options: decoding, temperature, top_k, top_p, seed, row_offset and codebook, as of
                `delvm.inference.sampling.generate`.

        Returns:
            ids (B, max_new_tokens) int64.

        Raises:
            ValueError: prompt, query and answer exceed the student's context.
        """
        prefix = None
        if self._can_share and len(prompt):
            if (needed := len(prompt) + queries.shape[1] + max_new_tokens) > (
                limit := self.student.max_seq_len
            ):
                raise ValueError(f"{needed} tokens exceed max_seq_len {limit}")
            prefix = self._prefix(prompt)
        else:
            queries = torch.cat((prompt.expand(len(queries), -1), queries), dim=1)
        return generate(self.student, queries, max_new_tokens, prefix_cache=prefix, **options)

    def _prefix(self, prompt: Tensor) -> Any:
        """The cache of a prompt (P,): one that is kept, or computed now."""
        # Tensors made in inference mode count no changes; there the address has to do.
        weights = tuple(
            (each.data_ptr(), None if each.is_inference() else each._version)
            for each in self.student.parameters()
        )
        key = (prompt.cpu().numpy().tobytes(), weights)
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return self._prefixes[key]
        student: Any = self.student
        cache = student.make_kv_cache(1, len(prompt))
        student.forward_hidden(prompt[None], cache)
        self.prefills += 1
        self._prefixes[key] = cache
        while len(self._prefixes) > max(1, self.max_prefixes):
            self._prefixes.popitem(last=False)
        return cache if self.max_prefixes else self._prefixes.pop(key)
