"""Networks in plain PyTorch: the student, the tokenizer and what belongs to them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delvm.models.attention import AttentionBackend
    from delvm.models.protocols import StudentNet, TokenizerNet, check_protocol
    from delvm.models.token_space import TokenSpace
    from delvm.models.transformer import Init, InputEmbedding, Transformer, TransformerConfig
    from delvm.models.vqgan import VQGAN, PixelRange, VQGANConfig

# Name -> its module, imported on first use: torch takes seconds to import.
_LAZY = {
    "AttentionBackend": "attention",
    "Init": "transformer",
    "InputEmbedding": "transformer",
    "PixelRange": "vqgan",
    "StudentNet": "protocols",
    "TokenSpace": "token_space",
    "TokenizerNet": "protocols",
    "Transformer": "transformer",
    "TransformerConfig": "transformer",
    "VQGAN": "vqgan",
    "VQGANConfig": "vqgan",
    "check_protocol": "protocols",
}
__all__ = [
    "VQGAN",
    "AttentionBackend",
    "Init",
    "InputEmbedding",
    "PixelRange",
    "StudentNet",
    "TokenSpace",
    "TokenizerNet",
    "Transformer",
    "TransformerConfig",
    "VQGANConfig",
    "check_protocol",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
