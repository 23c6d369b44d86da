"""DeLVM: train, distill and prompt a large vision model without language."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Prompter", "__version__", "compose", "load_student", "load_tokenizer", "run"]

if TYPE_CHECKING:
    from delvm.commands.app import compose, run
    from delvm.inference.prompter import Prompter
    from delvm.interop.load import load_student, load_tokenizer

# Name -> its module, imported on first use: torch and Hydra take seconds to import.
_LAZY = {
    "compose": "delvm.commands.app",
    "Prompter": "delvm.inference.prompter",
    "load_student": "delvm.interop.load",
    "load_tokenizer": "delvm.interop.load",
    "run": "delvm.commands.app",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
