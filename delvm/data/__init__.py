"""Data: raw sources, image and token shards, and the data sets that training reads."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = [
    "BalanceConfig",
    "Example",
    "ImageDataset",
    "ImagesConfig",
    "Manifest",
    "RejectedItem",
    "ResizeMode",
    "SentenceDataset",
    "SentencesConfig",
    "Source",
    "SourceChunk",
    "StreamingImages",
    "StreamingImagesConfig",
    "StreamingSentences",
    "StreamingSentencesConfig",
    "load_manifests",
    "open_image",
    "read_examples",
    "read_tokens",
    "resize_center_crop",
    "to_pil",
    "to_square",
    "to_tensor",
]

if TYPE_CHECKING:
    from delvm.data.augment import BalanceConfig
    from delvm.data.datasets.images import ImageDataset, ImagesConfig
    from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
    from delvm.data.datasets.streaming_images import StreamingImages, StreamingImagesConfig
    from delvm.data.datasets.streaming_sentences import (
        StreamingSentences,
        StreamingSentencesConfig,
    )
    from delvm.data.image_io import open_image, to_pil, to_tensor
    from delvm.data.resizing import ResizeMode, resize_center_crop, to_square
    from delvm.data.shards.manifest import Manifest, load_manifests
    from delvm.data.shards.reader import read_examples, read_tokens
    from delvm.data.sources.base import Source
    from delvm.data.types import Example, RejectedItem, SourceChunk

# Name -> its module, imported on first use: `delvm.data.types` is needed without torch.
_LAZY = {
    "BalanceConfig": "delvm.data.augment",
    "Example": "delvm.data.types",
    "ImageDataset": "delvm.data.datasets.images",
    "ImagesConfig": "delvm.data.datasets.images",
    "Manifest": "delvm.data.shards.manifest",
    "RejectedItem": "delvm.data.types",
    "ResizeMode": "delvm.data.resizing",
    "SentenceDataset": "delvm.data.datasets.sentences",
    "SentencesConfig": "delvm.data.datasets.sentences",
    "Source": "delvm.data.sources.base",
    "SourceChunk": "delvm.data.types",
    "StreamingImages": "delvm.data.datasets.streaming_images",
    "StreamingImagesConfig": "delvm.data.datasets.streaming_images",
    "StreamingSentences": "delvm.data.datasets.streaming_sentences",
    "StreamingSentencesConfig": "delvm.data.datasets.streaming_sentences",
    "load_manifests": "delvm.data.shards.manifest",
    "open_image": "delvm.data.image_io",
    "read_examples": "delvm.data.shards.reader",
    "read_tokens": "delvm.data.shards.reader",
    "resize_center_crop": "delvm.data.resizing",
    "to_pil": "delvm.data.image_io",
    "to_square": "delvm.data.resizing",
    "to_tensor": "delvm.data.image_io",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
