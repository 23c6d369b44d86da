"""Names that files on disk had in earlier versions, and the names that they have now.

One table a kind of file. Every reader applies its table, so old weights, checkpoints, manifests
and runs keep loading; every writer writes the new names alone.
"""

from collections.abc import Mapping
from typing import Any


def rename_keys(values: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    """The same mapping with old keys under their new names; other keys stay as they are."""
    return {table.get(key, key): value for key, value in values.items()}
