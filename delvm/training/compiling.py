"""Compilation of a student for training."""

import torch._functorch.config

from delvm.models.transformer import Transformer

# Of the memory that a block's backward pass would like to keep. For a little less than all of it
# the compiler computes casts, norms and SwiGLU's product again, which takes little time and spares
# half of what it keeps.
BUDGET = 0.99


def compile_blocks(model: Transformer) -> None:
    """Compile each block at its first use; blocks are alike, so that one compilation serves all."""
    torch._functorch.config.activation_memory_budget = BUDGET
    for block in model.blocks:
        block.compile()
