"""The schema of `delvm generate`. The comments of conf/verbs/generate.yaml explain each key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delvm.configs.keys import Device, Precision, SamplingKeys, require_min, unused_errors
from delvm.configs.store import TEXT_OR_LIST
from delvm.data.resizing import ResizeMode

# Keys for answers to prompts, and for the continuation of a video.
_OF_PROMPT = {"prompt", "query", "prompt_dir", "draft", "draft_tokens", "batch_size", "compile"}
_OF_PROMPT |= {"guidance", "overwrite"}
_OF_VIDEO = {"video", "num_frames", "window", "stride"}


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
        errors += require_min(1, self, "num_frames", "window", "stride", "batch_size")
        errors += require_min(1, self, "draft_tokens")
        if self.video is not None:
            asked = f"video={self.video}"
            return errors + unused_errors(self, _OF_PROMPT, asked, "video=null")
        errors += unused_errors(self, _OF_VIDEO, "a prompt", "video=PATH")
        if self.draft is None and self.draft_tokens != GenerateConfig.draft_tokens:
            errors.append(
                f"draft_tokens={self.draft_tokens} is for a draft: set draft=PATH, or "
                f"draft_tokens={GenerateConfig.draft_tokens}"
            )
        return errors + self._prompt_errors()

    @property
    def prompts(self) -> list[str]:
        """The prompts, which vote where there are several."""
        if self.prompt is None:
            return []
        return list(map(str, self.prompt if isinstance(self.prompt, list) else [self.prompt]))

    def _prompt_errors(self) -> list[str]:
        from delvm.inference.files.prompt_files import is_jsonl

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
        if self.prompt_dir is not None and self.prompt is not None:
            if all(Path(each).is_dir() for each in self.prompts):
                errors.append(
                    f"prompt_dir={self.prompt_dir} is for the paths in a .json or .jsonl file, and "
                    f"prompt={','.join(self.prompts)} is a directory: set prompt_dir=null"
                )
            elif not Path(self.prompt_dir).is_dir():
                errors.append(f"prompt_dir={self.prompt_dir} is not a directory: set it to one")
        return errors
