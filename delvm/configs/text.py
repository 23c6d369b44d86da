"""Overrides of paths and names, whose values are text as it was typed.

Hydra reads ``output_dir=2024_01_05`` and ``output_dir=1.10`` as numbers, and would write to
20240105 and to 1.1. Quoted, a value stays text; a key is text where its schema says `str`.
"""

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from delvm.configs.register import schemas
from delvm.configs.store import TEXT_OR_LIST

# A string in quotes, or what stands between commas and brackets.
_ELEMENT = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,()\[\]{}'"]+""")


def quote_text(verb: str, overrides: Sequence[str]) -> list[str]:
    """Overrides with quotes around the numbers that are values of text keys.

    Also in lists and in the values of a sweep. An override that Hydra cannot read is left to it.
    """
    return [_quote(verb, each) for each in overrides]


def _quote(verb: str, override: str) -> str:
    key, equals, value = override.partition("=")
    quoted = _ELEMENT.sub(_quote_number, value)
    parsed = _parse(override)
    if quoted == value or parsed is None or parsed.is_range_sweep() or parsed.is_interval_sweep():
        return override
    return f"{key}{equals}{quoted}" if is_text(verb, parsed.key_or_group) else override


def _quote_number(found: re.Match[str]) -> str:
    """An element, in quotes if Hydra reads a number or truth value that it spells differently."""
    typed = found[0].strip()
    parsed = _parse(f"key={typed}")
    value = None if parsed is None else parsed.value()
    differs = isinstance(value, bool | int | float) and str(value) != typed
    return found[0].replace(typed, f"'{typed}'") if differs else found[0]


def _parse(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def is_text(verb: str, key: str) -> bool:
    """Whether all schemas that have a key, a dotted path, say that its value is text."""
    root, groups = schemas(verb)
    hints = [_type_at(root, key.split("."))]
    if key.startswith("hydra."):
        hints.append(_type_at(HydraConf, key.split(".")[1:]))
    for group, options in groups.items():
        prefix = f"{group.replace('/', '.')}."
        below = key.removeprefix(prefix).split(".") if key.startswith(prefix) else []
        for name, schema in options.items():
            hints.append(_type_at(schema, below))
            if below[:1] == [name]:  # a group of several at once: callbacks.checkpoint.dirpath
                hints.append(_type_at(schema, below[1:]))
    found = [each for each in hints if each is not Any]
    text = (str, str | None, list[str], TEXT_OR_LIST["type"])
    return bool(found) and all(each in text for each in found)


def _type_at(schema: Any, path: Sequence[str]) -> Any:
    """The type that a schema gives to what is at a path below it; Any where it says none."""
    found = schema if path else Any
    for name in path:
        if is_dataclass(found):
            hint = get_type_hints(found).get(name, Any)
            stated = {each.name: each.metadata.get("type") for each in fields(found)}
            found = stated.get(name) or hint
        else:
            found = get_args(found)[1] if get_origin(found) is dict else Any
    return found
