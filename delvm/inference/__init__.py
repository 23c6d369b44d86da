"""Prompting a student: example pairs and a query in, an answer image out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "Answer",
    "Decoding",
    "Engine",
    "Prompter",
    "SamplingConfig",
    "find_queries",
    "generate",
    "read_prompt",
]

if TYPE_CHECKING:
    from delvm.inference.decoding import Decoding, SamplingConfig
    from delvm.inference.engine import Engine
    from delvm.inference.files.prompt_files import read_prompt
    from delvm.inference.files.query_files import find_queries
    from delvm.inference.generation import generate
    from delvm.inference.prompter import Answer, Prompter

_MODULES = {
    "Answer": "prompter",
    "Decoding": "decoding",
    "Engine": "engine",
    "Prompter": "prompter",
    "SamplingConfig": "decoding",
    "find_queries": "files.query_files",
    "generate": "generation",
    "read_prompt": "files.prompt_files",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, since torch takes seconds.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
