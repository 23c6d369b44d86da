"""Building the objects that a config names by `_target_`."""

import inspect
from collections.abc import Callable
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from delvm.errors import UserError


def build(node: Any, name: str = "", **kwargs: Any) -> Any:
    """The object of a config node, or None of an empty one.

    Args:
        node: with a `_target_`, from a DictConfig or a typed config.
        name: of the node, for errors.
        kwargs: further arguments, or others than the node's.

    Raises:
        UserError: its class cannot be imported, or refuses the arguments.
    """
    if not node:
        return None
    try:
        return instantiate(node, _convert_="object", **kwargs)
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if cause is not None and not isinstance(cause, ValueError | TypeError | ImportError):
            raise  # a bug in the class, which needs its traceback
        reason = " ".join(str(error if cause is None else cause).split())
        raise UserError(f"{name}: {reason}" if name else reason) from error


def options_of(function: Callable[..., Any], cfg: Any) -> dict[str, Any]:
    """The keys of a verb's config that a function takes as keyword-only arguments of their name."""
    parameters = inspect.signature(function).parameters.values()
    names = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    return {name: getattr(cfg, name) for name in names if hasattr(cfg, name)}
