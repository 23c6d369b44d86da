"""What the settings of all executors share; imports nothing heavy, since help pages read them."""

import os
from importlib import import_module
from typing import Any

from delvm.errors import UserError


def minimum_errors(settings: Any) -> list[str]:
    """An error for each of the settings that is below its `minimum`."""
    given = {key: getattr(settings, key) for key in settings.minimum}
    return [
        f"{key}={value} is below {settings.minimum[key]}: set it to {settings.minimum[key]} or more"
        for key, value in given.items()
        if value is not None and value < settings.minimum[key]
    ]


def require_package(package: str, executor: str) -> Any:
    """An optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"executor={executor} needs a package that is not installed ({error}): run "
            "`pip install 'delvm[scale]'`, or set executor=local"
        ) from None


def num_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
