"""DeLVM: train, distil and prompt a large vision model that has no language in it."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Prompter", "__version__", "load_student", "load_tokenizer"]

if TYPE_CHECKING:
    from delvm.inference.prompter import Prompter
    from delvm.interop.load import load_student, load_tokenizer


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: wait until something needs it
    if name == "Prompter":
        from delvm.inference.prompter import Prompter

        return Prompter
    if name in ("load_tokenizer", "load_student"):
        from delvm.interop import load as checkpoints

        return getattr(checkpoints, name)
    raise AttributeError(f"module 'delvm' has no attribute {name!r}")
