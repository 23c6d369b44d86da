"""Build the config dataclass of a network from plain keyword arguments."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any, TypeVar, get_type_hints

from delvm.errors import did_you_mean

ConfigT = TypeVar("ConfigT")


def config_from_settings(schema: type[ConfigT], settings: Mapping[str, Any]) -> ConfigT:
    """An instance of a config dataclass, as a YAML file or Hydra gives its values.

    Args:
        schema: the dataclass.
        settings: field -> value. An enum may be given by name, and any sequence as a list.

    Raises:
        ValueError: a field is unknown or an enum has no such member; all errors in one line.
    """
    hints = get_type_hints(schema)
    names = [field.name for field in fields(schema)]  # type: ignore[arg-type]
    errors, values = [], {}
    for name, value in settings.items():
        if name not in names:
            errors.append(f"unknown key '{name}': {did_you_mean(name, names)}")
            continue
        hint = hints[name]
        if isinstance(hint, type) and issubclass(hint, Enum) and isinstance(value, str):
            if value not in hint.__members__:
                choices = did_you_mean(value, hint.__members__)
                errors.append(
                    f"{name}={value} is not one of {', '.join(hint.__members__)}: {choices}"
                )
                continue
            value = hint[value]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = list(value)
        values[name] = value
    if errors:
        raise ValueError("; ".join(errors))
    return schema(**values)


def raise_errors(errors: Iterable[str]) -> None:
    """Raise one ValueError with all errors, separated by "; "; do nothing when there are none."""
    if message := "; ".join(errors):
        raise ValueError(message)


def below_minimum(config: object, minimum: float, *names: str) -> list[str]:
    """One error for each of the named fields whose value is less than ``minimum``."""
    values = {name: getattr(config, name) for name in names}
    return [
        f"{name} {value} is less than {minimum}"
        for name, value in values.items()
        if value < minimum
    ]
