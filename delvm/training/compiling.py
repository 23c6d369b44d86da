"""Compilation of a student for training."""

import torch._functorch.config

from delvm.models.transformer import Transformer


def compile_blocks(model: Transformer) -> None:
    """Compile each block at its first use; blocks are alike, so that one compilation serves all.

    Casts, norms and SwiGLU's product are computed again in the backward pass, into which the
    compiler fuses them: no slower, and two thirds of the memory. By default it keeps whatever a
    product in the backward pass reads.
    """
    torch._functorch.config.ban_recompute_materialized_backward = False
    for block in model.blocks:
        block.compile()
