"""Keys and values of prompts, computed once and kept as long as the student's weights are the same.

Notation:
    P tokens of a prompt
"""

import inspect
from collections import OrderedDict
from typing import Any

from torch import Tensor

from delvm.models.precision import autocast_dtype
from delvm.models.protocols import StudentNet


class PrefixCache:
    """The prompts that one student has read.

    Attributes:
        can_share: whether the student's key-value cache takes a ``prefix``.
        prefills: prompts that were computed.
    """

    def __init__(self, student: StudentNet, max_prefixes: int) -> None:
        """
        Args:
            student: in evaluation mode.
            max_prefixes: prompts that are kept, the least recently used goes first; 0 keeps none
                between calls.
        """
        self.student, self.max_prefixes = student, max_prefixes
        self.kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        make: Any = getattr(student, "make_kv_cache", None)
        self.can_share = make is not None and "prefix" in inspect.signature(make).parameters
        self.prefills = 0

    def get(self, prompt: Tensor) -> Any:
        """The cache of a prompt (P,): one that is kept, or computed now."""
        # Tensors made in inference mode count no changes; there the address has to do.
        weights = tuple(
            (each.data_ptr(), None if each.is_inference() else each._version)
            for each in self.student.parameters()
        )
        dtype = autocast_dtype(next(iter(self.student.parameters())))
        key = (prompt.cpu().numpy().tobytes(), dtype, weights)
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        student: Any = self.student
        cache = student.make_kv_cache(1, len(prompt))
        student.forward_hidden(prompt[None], cache)
        self.prefills += 1
        self.kept[key] = cache
        while len(self.kept) > max(1, self.max_prefixes):
            self.kept.popitem(last=False)
        return cache if self.max_prefixes else self.kept.pop(key)
