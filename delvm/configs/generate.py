"""The schema of `delvm generate`, and the keys that it shares with other verbs.

The comments of conf/verbs/generate.yaml explain each key.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from delvm.configs.store import TEXT_OR_LIST
from delvm.data.resizing import ResizeMode
from delvm.inference.decoding import Decoding, SamplingOptions, sampling_errors

Device = StrEnum("Device", ["auto", "cpu", "cuda"])  # auto: the first GPU, or else the CPU
Precision = StrEnum("Precision", ["fp32", "bf16", "int8"])  # of a student's weights


def require_min(least: float, **values: float | None) -> list[str]:
    """An error for each value below ``least``; None is not checked."""
    return [
        f"{key}={value} is below {least}: set {key}={least} or more"
        for key, value in values.items()
        if value is not None and value < least
    ]


def changed_keys(cfg: Any, keys: Iterable[str]) -> list[tuple[str, Any]]:
    """Those of the keys that do not have their defaults, which follow as they are typed."""
    defaults = ((key, getattr(type(cfg), key)) for key in keys)
    return [
        (key, "null" if default is None else str(default).lower())
        for key, default in defaults
        if getattr(cfg, key) != default
    ]


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
        return {
            "decoding": self.decoding,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "seed": self.seed,
            "guidance": self.guidance,
        }

    def sampling_errors(self) -> list[str]:
        return sampling_errors(
            self.decoding, self.temperature, self.top_k, self.top_p, self.guidance
        )


@dataclass
class GenerateConfig(SamplingKeys):
    prompt: Any = field(default=None, metadata=TEXT_OR_LIST)
    query: str | None = None
    prompt_dir: str | None = None
    output: str = "outputs/generate"
    tokenizer: str = "shapes"
    student: str = "shapes"
    draft: str | None = None
    draft_tokens: int = 4
    resize: ResizeMode | None = None
    video: str | None = None
    num_frames: int = 4
    window: int | None = None
    stride: int = 1
    batch_size: int = 32
    precision: Precision = Precision.fp32
    compile: bool = False
    device: Device = Device.auto
    overwrite: bool = False

    def validate(self) -> list[str]:
        errors = self.sampling_errors()
        errors += self._prompt_errors() if self.video is None else self._video_errors(self.video)
        if self.draft is None and self.draft_tokens != GenerateConfig.draft_tokens:
            errors.append(
                f"draft_tokens={self.draft_tokens} is for a draft: set draft=PATH, or "
                f"draft_tokens={GenerateConfig.draft_tokens}"
            )
        return errors + require_min(1, batch_size=self.batch_size, draft_tokens=self.draft_tokens)

    @property
    def prompts(self) -> list[str]:
        """The prompts, which vote where there are several."""
        if self.prompt is None:
            return []
        return list(map(str, self.prompt if isinstance(self.prompt, list) else [self.prompt]))

    def _prompt_errors(self) -> list[str]:
        from delvm.inference.prompt_files import is_jsonl

        listed = self.prompt if isinstance(self.prompt, list) else [self.prompt or ""]
        if not listed or any(each is None or isinstance(each, list | dict) for each in listed):
            return [
                f"prompt={self.prompt} is neither a path nor a list of paths: set prompt=DIR or "
                "'prompt=[DIR1,DIR2]'"
            ]
        errors = []
        if any(map(is_jsonl, self.prompts)):
            if len(self.prompts) > 1:
                errors.append(
                    f"prompt=[{','.join(self.prompts)}] has a .jsonl file, whose lines have "
                    "queries of their own: set prompt to that file alone, or leave it out"
                )
            elif self.query is not None:
                errors.append(
                    f"query={self.query} is not for prompt={self.prompt}, whose lines have queries "
                    "of their own: set query=null"
                )
        elif not self.prompt or not self.query:
            missing = {"prompt": "DIR", "query": "IMAGE"}
            missing = {key: each for key, each in missing.items() if not getattr(self, key)}
            example = " ".join(f"{key}={each}" for key, each in missing.items())
            errors.append(
                f"missing value{'s'[: len(missing) > 1]} for {', '.join(missing)}: set {example}"
                f"{', or video=PATH' if len(missing) > 1 else ''}"
            )
        for key, default in changed_keys(self, ("num_frames", "window", "stride")):
            value = getattr(self, key)
            errors.append(f"{key}={value} is for a video: set video=PATH, or {key}={default}")
        if self.prompt_dir is not None and self.prompt is not None:
            if all(Path(each).is_dir() for each in self.prompts):
                errors.append(
                    f"prompt_dir={self.prompt_dir} is for the paths in a .json or .jsonl file, and "
                    f"prompt={','.join(self.prompts)} is a directory: set prompt_dir=null"
                )
            elif not Path(self.prompt_dir).is_dir():
                errors.append(f"prompt_dir={self.prompt_dir} is not a directory: set it to one")
        return errors

    def _video_errors(self, video: str) -> list[str]:
        given = {key: getattr(self, key) for key in ("prompt", "query", "prompt_dir", "draft")}
        given = {key: value for key, value in given.items() if value is not None}
        if self.compile:
            given["compile"] = "true"
        errors = []
        if given:
            listed = " ".join(f"{key}={value}" for key, value in given.items())
            errors.append(
                f"video={video} is continued without a prompt: leave out {listed}, or set "
                "video=null"
            )
        if self.guidance != 1:
            errors.append(
                f"guidance={self.guidance:g} is for answers to a prompt, and video={video} has "
                "none: set guidance=1"
            )
        return errors + require_min(
            1, num_frames=self.num_frames, window=self.window, stride=self.stride
        )
