"""Every error of a composed config at once: of each part by its own `validate`, then across parts.

Parts of foreign classes have no schema and are skipped: what they take is theirs to check.
"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from delvm.errors import UserError


def check(verb: str, cfg: DictConfig) -> None:
    """Check a verb's config before any work is done.

    Raises:
        UserError: with every error; each names both values and the override to type.
    """
    raise_errors(config_errors(verb, cfg))


def raise_errors(errors: list[str]) -> None:
    """Raise one UserError of all, if there are any."""
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        raise UserError("\n  - ".join([f"{len(errors)} errors in the config:", *errors]))


def config_errors(verb: str, cfg: DictConfig) -> list[str]:
    """Every error of a verb's config, one line each.

    A part's `validate` names its keys from the part on ("lr=-1 is ..."); here the path of the part
    is put in front ("optimizer.lr=-1 is ...").
    """
    errors = []
    for path, node in _typed_nodes(cfg):
        if not hasattr(OmegaConf.get_type(node), "validate"):
            continue
        try:
            part: Any = OmegaConf.to_object(node)
        except InterpolationKeyError:
            continue  # refers to keys that a foreign part lacks; an error only if it is built
        errors += [f"{path}.{error}" if path else error for error in part.validate()]
    if verb == "train":
        from delvm.configs.validate_train import train_errors

        errors += train_errors(cfg)
    return errors


def _typed_nodes(node: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Each node that has a schema, outermost first."""
    if OmegaConf.get_type(node) is not dict:
        yield path, node
    for key in map(str, node):
        # An interpolated part (module.model: ${student.net}) is visited where it stands.
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        if isinstance(value := node[key], DictConfig):
            yield from _typed_nodes(value, f"{path}.{key}" if path else key)
