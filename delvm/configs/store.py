"""Schemas in Hydra's ConfigStore, so that a mistyped key or a wrong type fails at composition.

A shipped config file begins with its schema (``defaults: [/schema/source/gopro@_here_, _self_]``).
The file of a plugin needs none: its node is `Any` in the verb's schema, and `_target_` is enough.
"""

import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

# Metadata of a field of type Any: OmegaConf has no union of text and lists.
TEXT_OR_LIST = {"type": str | list[str]}
Groups = dict[str, dict[str, type]]  # group ("source", "module/loss") -> option -> schema


def schema_of(
    target: Callable[..., Any],
    *,
    name: str | None = None,
    target_path: str | None = None,
    omit: Collection[str] = (),
    **defaults: Any,
) -> type:
    """A dataclass of the arguments of a class or function, led by its `_target_`.

    Annotations that OmegaConf does not support become `Any`, and arguments without a default are
    mandatory. Left out are `*args`, `**kwargs`, and arguments whose default is an object that a
    config cannot hold.

    Args:
        target: what `hydra.utils.instantiate` is to call. The schema keeps its `validate`; that of
            a dataclass is a subclass of it.
        name: of the schema, by default the target's.
        target_path: dotted path of the target, by default where it is defined.
        omit: arguments that code passes, such as the parameters of a model to its optimizer.
        defaults: replace the target's own; further names (`_partial_=True`) become fields.
    """
    inherits = isinstance(target, type) and is_dataclass(target)
    path = target_path or f"{target.__module__}.{target.__qualname__}"
    found: dict[str, tuple[Any, Any]] = {"_target_": (str, field(default=path))}
    found |= _changed_fields(target, defaults) if inherits else _arguments(target, defaults)
    for key, value in defaults.items():
        found.setdefault(key, (Any if value is None else type(value), _field(value)))
    # Of a class that is not a dataclass only its check of settings, which reads attributes of the
    # same names. (Lightning's Trainer has a method `validate` that takes a model.)
    check = getattr(target, "validate", None)
    keeps = not inherits and check and list(inspect.signature(check).parameters) == ["self"]
    return make_dataclass(
        name or target.__name__,
        [(key, *each) for key, each in found.items() if key not in omit],
        bases=(target,) if isinstance(target, type) and inherits else (),
        namespace={"validate": check} if keeps else {},
        kw_only=True,
    )


def _changed_fields(target: Any, defaults: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields of a dataclass with another default, or an annotation of which OmegaConf fails."""
    hints, found = get_type_hints(target), {}
    for each in fields(target):
        kept = field(default=each.default, default_factory=each.default_factory)
        if each.name in defaults or not _fits(hints[each.name], MISSING):
            default = _field(defaults[each.name]) if each.name in defaults else kept
            found[each.name] = (_annotation(hints[each.name]), default)
    return found


def _arguments(target: Callable[..., Any], defaults: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    called: Any = target  # mypy warns of __init__ of an instance
    try:
        hints = get_type_hints(called.__init__ if isinstance(target, type) else target)
    except NameError:  # names of a package that is not installed (wandb)
        hints = {}
    found = {}
    for each in inspect.signature(target).parameters.values():
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            continue
        default = defaults.get(each.name, MISSING if each.default is each.empty else each.default)
        for annotation in (_annotation(hints.get(each.name, Any)), Any):
            if _fits(annotation, default):
                found[each.name] = (annotation, _field(default))
                break
    return found


def _annotation(hint: Any) -> Any:
    """The annotation where OmegaConf supports it, else Any."""
    return hint if _fits(hint, MISSING) else Any


def _fits(annotation: Any, default: Any) -> bool:
    """Whether OmegaConf takes a field of this annotation and default."""
    try:
        OmegaConf.structured(make_dataclass("Probe", [("value", annotation, _field(default))]))
    except Exception:  # OmegaConf's own and whatever the comparison of foreign types raises
        return False
    return True


def _field(default: Any) -> Any:
    if isinstance(default, list | dict) or is_dataclass(default):
        return field(default_factory=lambda: default)  # OmegaConf copies what it is given
    return field(default=default)


def publish(module: str, groups: Groups) -> None:
    """Make the schemas of groups attributes of a module, so that they pickle by reference.

    Launchers send configs to workers and back. A schema that came back as a copy would replace the
    one that is known here, with another object in place of `dataclasses.MISSING`.
    """
    for group, options in groups.items():
        for name, schema in options.items():
            _publish(module, schema, f"{group}_{name}".replace("/", "_"))


def _publish(module: str, schema: type, name: str) -> None:
    if schema.__module__ != "types":  # written by hand, so it has a name
        return
    for each in fields(schema):
        if isinstance(each.type, type) and is_dataclass(each.type):
            _publish(module, each.type, f"{name}_{each.name}")
    schema.__module__, schema.__qualname__, schema.__name__ = module, name, name
    setattr(sys.modules[module], name, schema)


def store(verb: str, root: type, groups: Groups) -> None:
    """Make a verb's schemas known to Hydra as `schema/VERB` and `schema/GROUP/NAME`."""
    known = ConfigStore.instance()
    known.store(group="schema", name=verb, node=_open_dicts(root), provider="delvm")
    for group, options in groups.items():
        for name, each in options.items():
            node = _open_dicts(each)
            known.store(group=f"schema/{group}", name=name, node=node, provider="delvm")


def _open_dicts(schema: type) -> DictConfig:
    """The schema as a config whose plain dictionaries take new keys from the command line."""
    node: DictConfig = OmegaConf.structured(schema)
    for _, each in walk(node):
        if OmegaConf.get_type(each) is dict:
            OmegaConf.set_struct(each, False)
    return node


def walk(node: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """A node and all nodes below it, each with its path ("" or "student.net.").

    Interpolations are not followed: ``module.model: ${student.net}`` is visited where it is.
    """
    yield path, node
    for key in map(str, node):
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        if isinstance(value := node[key], DictConfig):
            yield from walk(value, f"{path}{key}.")
