"""Evaluation in the middle of a training step."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module, *, is_compiled: bool = False) -> Iterator[None]:
    """A model in evaluation mode; afterwards each part of it is again in the mode that it was in.

    Args:
        model: parts of it may be kept in evaluation mode on purpose.
        is_compiled: whether it has been compiled: it is run as it was before, since it would be
            compiled again for other shapes.
    """
    modes = [(each, each.training) for each in model.modules()]
    model.eval()
    try:
        with torch.compiler.set_stance("force_eager") if is_compiled else nullcontext():
            yield
    finally:
        for each, training in modes:
            each.training = training
