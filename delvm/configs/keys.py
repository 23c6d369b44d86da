"""Keys that several verbs share, and checks of keys."""

from collections.abc import Collection
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Any, cast

from delvm.inference.decoding import Decoding, SamplingOptions, sampling_errors
from delvm.storage import as_path

Device = StrEnum("Device", ["auto", "cpu", "cuda"])  # auto: the first GPU, or else the CPU
Precision = StrEnum("Precision", ["fp32", "bf16", "int8"])  # of a student's weights


@dataclass
class SamplingKeys:
    """How answers are generated, see `delvm.inference.decoding.SamplingConfig`."""

    decoding: Decoding = Decoding.mean_embedding
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    guidance: float = 1.0

    @property
    def sampling(self) -> SamplingOptions:
        """The values of these keys."""
        names = [each.name for each in fields(SamplingKeys)]
        return cast(SamplingOptions, {name: getattr(self, name) for name in names})

    def sampling_errors(self) -> list[str]:
        return sampling_errors(
            self.decoding, self.temperature, self.top_k, self.top_p, self.guidance
        )


def require_min(least: float, cfg: Any, *keys: str) -> list[str]:
    """An error for each of the keys whose value is below ``least``; None is not checked."""
    return [
        f"{key}={value} is below {least}: set {key}={least} or more"
        for key in keys
        if (value := getattr(cfg, key)) is not None and value < least
    ]


def changed_keys(cfg: Any) -> dict[str, Any]:
    """Key -> default, of those keys that do not have it."""
    found = {}
    for each in fields(cfg):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if getattr(cfg, each.name) != default:
            found[each.name] = default
    return found


def as_typed(value: Any) -> str:
    """A value as it is typed on the command line: null, true, 1.0, [a,b], {a:b}."""
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{as_typed(each)}' for key, each in value.items())}}}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def unused_errors(cfg: Any, unused: Collection[str], by: str, instead: str) -> list[str]:
    """An error if keys were changed that what is asked for does not use.

    Args:
        unused: the keys that it does not use.
        by: what is asked for ("mode=video"), for the message.
        instead: what to set so that they are used.
    """
    changed = {key: default for key, default in changed_keys(cfg).items() if key in unused}
    if not changed:
        return []
    given = " ".join(f"{key}={as_typed(getattr(cfg, key))}" for key in changed)
    defaults = " ".join(f"{key}={as_typed(default)}" for key, default in changed.items())
    return [f"{by} does not use {given}: set {defaults}{f', or {instead}' if instead else ''}"]


def input_errors(input_dir: str, verb: str) -> list[str]:
    """An error if a directory of shards, which a verb writes, is missing."""
    if as_path(input_dir).is_dir():
        return []
    return [f"input_dir={input_dir} not found: run `delvm {verb} output_dir={input_dir}`"]
