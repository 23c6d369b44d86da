"""Visual sentences streamed from token shards, see `delvm.data.datasets.streaming`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from delvm.data.datasets.packing import PackedDataset, PackedRows
from delvm.data.datasets.sampler import Int64
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.datasets.stream_stages import Examples, ExampleStream
from delvm.data.datasets.streaming import StreamingDataset, StreamSettings, stream_errors
from delvm.data.shards.fetch import ShardPath
from delvm.data.shards.manifest import Manifest
from delvm.data.shards.reader import read_token_shard
from delvm.data.shards.shard_list import list_shards
from delvm.storage import as_path

STREAM_WINDOW_SHARDS = 8


@dataclass
class StreamingSentencesConfig(StreamSettings, SentencesConfig):
    """As `SentencesConfig`, for streams."""

    shuffle_window_shards: int = STREAM_WINDOW_SHARDS

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        return [*SentencesConfig.validate(self), *stream_errors(self)]


class TokenDecoder:
    """Makes the examples (n, k * N) uint16 of a token shard."""

    def __init__(self, manifest: Manifest) -> None:
        """Decode the shards of a manifest."""
        assert manifest.tokens_per_image is not None
        self.manifest = manifest
        self.width = manifest.images_per_example * manifest.tokens_per_image

    def empty(self, count: int) -> Examples:
        return np.empty((count, self.width), np.uint16)

    def __call__(self, path: ShardPath, contents: bytes, count: int) -> Examples:
        records = [*read_token_shard(path, self.manifest, count, contents)]
        return np.concatenate(records).reshape(count, self.width)


class StreamingSentences(StreamingDataset):
    """Endless training sentences; a batch has the keys of `SentenceDataset` or `PackedDataset`."""

    layout: SentenceDataset

    def __init__(self, config: StreamingSentencesConfig, seed: int) -> None:
        """Read the manifests of the training split.

        Args:
            config: Which shards, and how sentences are made of them.
            seed: Of the order.

        Raises:
            UserError: As of `SentenceDataset` and `list_shards`.
        """
        shards = list_shards(as_path(config.path), "tokens", config.shards)
        self.manifests = {task: each.manifest for task, each in shards.items()}
        arrange = PackedDataset if config.packing else SentenceDataset
        sources = {
            task: config.source(each, TokenDecoder(each.manifest)) for task, each in shards.items()
        }
        super().__init__(arrange(config, seed, self.manifests), sources)
        self.tasks, self.token_layout = self.layout.tasks, self.layout.token_layout
        self.mixture_weights = self.layout.mixture_weights
        assert self.token_layout.tokens_per_image is not None
        self._shape = (config.num_images, self.token_layout.tokens_per_image)

    def make_batch(self, indices: Int64, streams: Sequence[ExampleStream]) -> dict[str, Any]:
        layout = self.layout
        if isinstance(layout, PackedDataset):
            rows = PackedRows(len(indices), *self._shape)
            for row, index in enumerate(indices.tolist()):
                for each in layout.packed(index):
                    layout.place(rows, row, each, streams[each.task].take(each.num_examples))
            return rows.batch()
        tasks, occurrence = layout.schedule(indices)
        num_images, tokens_per_image = self._shape
        ids = np.empty((len(indices), num_images * tokens_per_image), np.uint16)
        for task in np.unique(tasks):
            mine = np.flatnonzero(tasks == task)
            examples = streams[task].take(len(mine) * layout.examples_per_sentence[task])
            ids[mine] = examples.reshape(len(mine), -1)
        return layout.label(ids, tasks, occurrence)
