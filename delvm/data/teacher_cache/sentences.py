"""Training sentences with the stored distributions of a teacher."""

import json
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from delvm.data.datasets.sampler import Int64
from delvm.data.datasets.sentences import SentenceDataset
from delvm.data.teacher_cache.store import TeacherCache, checksums
from delvm.errors import UserError

# A key of `SentenceDataset.order` -> the override that sets it.
_OVERRIDES = {
    "seed": "data.seed",
    "images_per_sentence": "data.images_per_sentence",
    "shuffle_window_shards": "data.shuffle_window_shards",
    "mixture_weights": "data.task_weights",
    "packing": "data.packing",
    "shuffle_annotations": "data.shuffle_annotations",
}


class TeacherSentences(Dataset[dict[str, Any]]):
    """The sentences of a data set that a teacher has read, over and over in the same order.

    A batch has two keys more than the data set's: "teacher_ids" (B, T - 1, k) int64 and
    "teacher_log_probs" (B, T - 1, k + 1) float32, of the tokens that follow each of the first
    T - 1. All else is the data set's.
    """

    def __init__(self, sentences: SentenceDataset, cache: TeacherCache) -> None:
        """Check that the cache is of these sentences.

        Args:
            sentences: the data set; the cache holds its first sentences.
            cache: the distributions.

        Raises:
            UserError: they are other sentences.
        """
        self.sentences, self.cache = sentences, cache
        layout, plan = sentences.token_layout, cache.plan
        if plan.tokenizer != layout.fingerprint:
            raise UserError(
                f"teacher.path={cache.path} is of ids of tokenizer {plan.tokenizer}, data.path="
                f"{sentences.config.path} holds those of {layout.fingerprint}: set "
                "teacher.path=PATH or data.path=PATH"
            )
        _check_order(sentences, cache)
        self[np.array([0, plan.num_sentences - 1])]  # are the tokens the same?

    @property
    def order(self) -> dict[str, Any]:
        """All that the order depends on: a run resumes only where it is the same."""
        plan = self.cache.plan
        teacher = {"teacher": plan.teacher, "top_k": plan.top_k, "sentences": plan.num_sentences}
        return self.sentences.order | {"teacher_cache": teacher}

    def __getitem__(self, indices: Int64) -> dict[str, Any]:
        """The batch of the sentences with these numbers (B,), after the last from the first on."""
        cached = indices % self.cache.plan.num_sentences
        batch = self.sentences[cached]
        expected, ids, log_probs = self.cache.read(cached)
        found = checksums(batch["input_ids"].numpy())
        if len(other := cached[found != expected]):
            raise UserError(
                f"sentence {other[0]} of data.path={self.sentences.config.path} has other tokens "
                f"(checksum {found[found != expected][0]:08x}) than those that the teacher of "
                f"teacher.path={self.cache.path} read ({expected[found != expected][0]:08x}): they "
                "were encoded again since; run `delvm encode teacher=PATH overwrite=true`"
            )
        return batch | {
            "next_index": int(indices[-1]) + 1,
            "teacher_ids": torch.from_numpy(ids.astype(np.int64)),
            "teacher_log_probs": torch.from_numpy(log_probs),
        }

    def __getattr__(self, name: str) -> Any:
        """Whatever else the data set has; not while this is being unpickled."""
        if name.startswith("__") or "sentences" not in vars(self):
            raise AttributeError(name)
        return getattr(self.sentences, name)


def _check_order(sentences: SentenceDataset, cache: TeacherCache) -> None:
    """Refuse a cache of sentences in another order."""
    made, now = cache.plan.order, json.loads(json.dumps(sentences.order))
    keys = [key for key in made | now if _comparable(made.get(key)) != _comparable(now.get(key))]
    if not keys:
        return
    differences = ", ".join(f"{key} {made.get(key)} != {now.get(key)}" for key in keys)
    overrides = [
        f"{_OVERRIDES[key]}={_value(made.get(key, False))}" for key in keys if key in _OVERRIDES
    ]
    again = "run `delvm encode teacher=PATH` for these sentences"
    raise UserError(
        f"teacher.path={cache.path} is of other sentences than data.path={sentences.config.path} "
        f"gives ({differences}): "
        + (f"set {' '.join(overrides)}, or {again}" if len(overrides) == len(keys) else again)
    )


def _comparable(value: Any) -> Any:
    """A value of an order: of the weights of tasks, the order counts and rounding does not."""
    if not isinstance(value, dict):
        return value
    return [(k, round(v, 9) if isinstance(v, float) else v) for k, v in value.items()]


def _value(value: Any) -> str:
    """A value as it is typed in an override."""
    if isinstance(value, dict):
        return "'{" + ", ".join(f"{key}: {each}" for key, each in value.items()) + "}'"
    return str(value).lower()
