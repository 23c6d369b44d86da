"""Training: LightningModules of the tokenizer, the student and distillation, and what they need."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delvm.training.data.datamodules import ImageDataModule, SentenceDataModule
    from delvm.training.data.streaming import StreamingImageDataModule, StreamingSentenceDataModule
    from delvm.training.distillation import DistillationModule, load_teacher
    from delvm.training.losses import CrossEntropyLoss, DistillationLoss, TokenLoss
    from delvm.training.offline_distillation import OfflineDistillationModule
    from delvm.training.student import StudentModule
    from delvm.training.tokenizer import TokenizerModule

__all__ = [
    "CrossEntropyLoss",
    "DistillationLoss",
    "DistillationModule",
    "ImageDataModule",
    "OfflineDistillationModule",
    "SentenceDataModule",
    "StreamingImageDataModule",
    "StreamingSentenceDataModule",
    "StudentModule",
    "TokenLoss",
    "TokenizerModule",
    "load_teacher",
]

# Module -> its public names, imported on first use: Lightning takes seconds to import.
_LAZY = {
    "data.datamodules": ("ImageDataModule", "SentenceDataModule"),
    "distillation": ("DistillationModule", "load_teacher"),
    "losses": ("CrossEntropyLoss", "DistillationLoss", "TokenLoss"),
    "data.streaming": ("StreamingImageDataModule", "StreamingSentenceDataModule"),
    "offline_distillation": ("OfflineDistillationModule",),
    "student": ("StudentModule",),
    "tokenizer": ("TokenizerModule",),
}


def __getattr__(name: str) -> Any:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
