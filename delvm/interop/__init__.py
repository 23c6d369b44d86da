"""Reading and writing models and token files: DeLVM's own formats and those of other projects."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["load_student", "load_tokenizer", "save_model"]

if TYPE_CHECKING:
    from delvm.interop.load import load_student, load_tokenizer
    from delvm.interop.save import save_model

# Name -> its module, imported on first use: the table of formats is needed without torch.
_LAZY = {
    "load_student": "delvm.interop.load",
    "load_tokenizer": "delvm.interop.load",
    "save_model": "delvm.interop.save",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
