"""Evaluation and generation in the middle of a training step."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from delvm.models.precision import autocast_dtype
from delvm.models.transformer import Transformer


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


@contextmanager
def generation_mode(model: Any, *, is_compiled: bool = False) -> Iterator[Any]:
    """A network to generate with: the model in evaluation mode, or a copy of it in bfloat16.

    Under autocast to bfloat16 each weight is cast again for each token, and on CPU the decoder in
    C++ is not used. So the weights are cast once, and autocast is off. Shards of weights are cast
    when they are gathered (``strategy.param_dtype``), and other networks may not be made for it.

    Args:
        model, is_compiled: as of `evaluation_mode`.
    """
    weight = model.head.weight
    is_cast = weight.dtype is torch.float32 and autocast_dtype(weight) is torch.bfloat16
    is_copied = is_cast and isinstance(model, Transformer) and not isinstance(model, FSDPModule)
    with evaluation_mode(model, is_compiled=is_compiled):
        if not is_copied:
            yield model
            return
        with torch.autocast(weight.device.type, enabled=False):
            yield deepcopy(model).to(torch.bfloat16)
