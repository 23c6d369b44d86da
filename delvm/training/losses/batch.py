"""The values of a loss over a batch: over its logits, and over its hidden states if it reads these.

Notation:
    n rows (the predicted tokens of a batch)    C hidden dim    V vocabulary    f values of a loss
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from delvm.training.losses.chunked import chunked_linear_loss
from delvm.training.losses.tokens import TokenLoss


def batch_sums(
    loss: TokenLoss,
    hidden: Tensor,
    head: Tensor,
    token_inputs: Sequence[Tensor],
    shared_inputs: Sequence[Tensor] = (),
    *,
    compiled: bool = False,
) -> Tensor:
    """The sums of a loss over a batch; see `chunked_linear_loss`.

    Two methods of a loss see the complete batch, where it has them. ``batch_inputs(hidden, head,
    token_inputs, shared_inputs)`` returns further shared inputs, such as a threshold.
    ``hidden_loss(hidden, *token_inputs)`` returns a sum () that is added to the first value and
    follows the others, or None; it is differentiated in hidden states and parameters of the loss,
    while the loss of logits is not in its parameters.

    Args:
        loss: of logits, the token inputs of their rows and the shared inputs.
        hidden: (n, C).
        head: (V, C).
        token_inputs: targets (n,), weights (n,), and what else there is per token.
        shared_inputs: what is the same for all tokens.
        compiled: whether the loss of logits goes through torch.compile.

    Returns:
        () or (f,): the first is to be minimized.
    """
    if (batch_inputs := getattr(loss, "batch_inputs", None)) is not None:
        more = batch_inputs(hidden.detach(), head.detach(), token_inputs, shared_inputs)
        shared_inputs = (*shared_inputs, *more)
    sums = chunked_linear_loss(hidden, head, loss, token_inputs, shared_inputs, compiled=compiled)
    hidden_loss = getattr(loss, "hidden_loss", None)
    added = None if hidden_loss is None else hidden_loss(hidden, *token_inputs)
    if added is None:
        return sums
    values = sums.flatten()
    return torch.cat((values[:1] + added, values[1:], added.detach()[None]))


def trained_parts(loss: object) -> Iterator[nn.Module]:
    """The modules within a loss that hold parameters of their own."""
    for part in loss.modules() if isinstance(loss, nn.Module) else ():
        if any(True for _ in part.parameters(recurse=False)):
            yield part
