"""Building the objects that a config names by `_target_`."""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from delvm.errors import UserError


def build(node: Any) -> Any:
    """The object of a config node.

    Raises:
        UserError: the class refuses its settings, or cannot be imported.
    """
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(" ".join(str(error).split())) from error
