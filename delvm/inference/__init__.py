"""Prompting a student: example pairs and a query in, an answer image out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Decoding", "Engine", "Prompter", "find_queries", "generate", "read_prompt"]

if TYPE_CHECKING:
    from delvm.inference.decoding import Decoding
    from delvm.inference.engine import Engine
    from delvm.inference.prompt_folder import find_queries, read_prompt
    from delvm.inference.prompter import Prompter
    from delvm.inference.sampling import generate

_MODULES = {
    "Decoding": "decoding",
    "Engine": "engine",
    "Prompter": "prompter",
    "find_queries": "prompt_folder",
    "generate": "sampling",
    "read_prompt": "prompt_folder",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, since torch takes seconds.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
