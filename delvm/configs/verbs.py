"""The typed schemas of all verbs but `delvm train`.

The comments of conf/verbs/VERB.yaml explain each key. `validate` returns the errors of the
settings, one line each.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from delvm.configs.store import Groups, schema_of
from delvm.configs.text import TEXT_OR_LIST
from delvm.data.resizing import ResizeMode
from delvm.data.types import SPLITS
from delvm.errors import did_you_mean
from delvm.inference.decoding import Decoding, SamplingOptions, sampling_errors
from delvm.interop.formats import output_errors
from delvm.storage import as_path

Device = StrEnum("Device", ["auto", "cpu", "cuda"])  # auto: the first GPU, or else the CPU
Precision = StrEnum("Precision", ["fp32", "bf16", "int8"])  # of a student's weights
EvaluationMode = Enum("EvaluationMode", ["students", "tokenizer"])
TokenFormat = StrEnum("TokenFormat", ["shards", "internlm_bin", "lvm_jsonl"])
ExportFormat = StrEnum("ExportFormat", ["llama", "internlm_hf", "open_muse"])
DType = StrEnum("DType", ["float32", "bfloat16", "float16"])  # of exported weights


def require_min(least: float, **values: float | None) -> list[str]:
    """An error for each value below ``least``; None is not checked."""
    return [
        f"{key}={value} is below {least}: set {key}={least} or more"
        for key, value in values.items()
        if value is not None and value < least
    ]


def _changed(cfg: Any, keys: Iterable[str]) -> list[tuple[str, Any]]:
    """Those of the keys that do not have their defaults, which follow as they are typed."""
    defaults = ((key, getattr(type(cfg), key)) for key in keys)
    return [
        (key, "null" if default is None else str(default).lower())
        for key, default in defaults
        if getattr(cfg, key) != default
    ]


def _split_errors(splits: list[str]) -> list[str]:
    if not splits:
        return [f"no splits given: set splits=[{','.join(SPLITS)}]"]
    wrong = [split for split in splits if split not in SPLITS]
    return [f"unknown split '{split}': {did_you_mean(split, SPLITS)}" for split in wrong]


def _input_errors(input_dir: str, verb: str) -> list[str]:
    if as_path(input_dir).is_dir():
        return []
    return [f"input_dir={input_dir} not found: run `delvm {verb} output_dir={input_dir}`"]


@dataclass
class PrepareConfig:
    source: Any = MISSING
    output_dir: str = "outputs/shapes/pairs"
    splits: list[str] = field(default_factory=lambda: ["train", "val", "test"])
    shard_size: int = 1000
    max_reject_fraction: float = 0.05
    overwrite: bool = False

    def validate(self) -> list[str]:
        return _split_errors(self.splits) + require_min(1, shard_size=self.shard_size)


@dataclass
class EncodeConfig:
    input_dir: str = "outputs/shapes/pairs"
    output_dir: str = "outputs/shapes/tokens"
    tokenizer: str = "shapes"
    balance: Any = MISSING
    executor: Any = MISSING
    batch_size: int = 64
    bf16: bool = False
    device: Device = Device.auto
    splits: list[str] = field(default_factory=lambda: ["train", "val", "test"])
    seed: int = 0
    overwrite: bool = False

    def validate(self) -> list[str]:
        errors = _split_errors(self.splits) + require_min(1, batch_size=self.batch_size)
        errors += _input_errors(self.input_dir, "prepare")
        if not errors and as_path(self.input_dir).resolve() == as_path(self.output_dir).resolve():
            errors.append(
                f"input_dir and output_dir are both {self.input_dir}: "
                "set output_dir to another directory"
            )
        return errors


@dataclass
class RunsConfig:
    input_dir: str = MISSING
    output: str = MISSING

    def validate(self) -> list[str]:
        from delvm.evaluation.run_table import path_errors

        return path_errors(Path(self.input_dir), Path(self.output))


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
        elif self.prompt is None or self.query is None:
            missing = {"prompt": "DIR", "query": "IMAGE"}
            missing = {key: each for key, each in missing.items() if getattr(self, key) is None}
            example = " ".join(f"{key}={each}" for key, each in missing.items())
            errors.append(
                f"missing value{'s'[: len(missing) > 1]} for {', '.join(missing)}: set {example}"
                f"{', or video=PATH' if len(missing) > 1 else ''}"
            )
        for key, default in _changed(self, ("num_frames", "window", "stride")):
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


@dataclass
class EvaluateConfig(SamplingKeys):
    input_dir: str = "outputs/shapes/pairs"
    output_dir: str = "outputs/evaluate"
    tokenizer: str = "shapes"
    mode: EvaluationMode = EvaluationMode.students
    students: dict[str, str] = field(default_factory=dict)
    fid_features: str | None = None
    title: str = "Evaluation"
    tasks: list[str] = field(default_factory=list)
    num_queries: int = 100
    num_shots: int = 3
    num_prompts: int = 1
    shared_prompt: bool = False
    batch_size: int = 32
    precision: Precision = Precision.fp32
    compile: bool = False
    device: Device = Device.auto

    def validate(self) -> list[str]:
        from delvm import tasks

        errors = self.sampling_errors() + require_min(
            1,
            batch_size=self.batch_size,
            num_queries=self.num_queries,
            num_shots=self.num_shots,
            num_prompts=self.num_prompts,
        )
        for task in self.tasks:
            if task not in tasks.NAMES and not (as_path(self.input_dir) / "test" / task).is_dir():
                errors.append(f"unknown task '{task}': {did_you_mean(task, tasks.NAMES)}")
        return errors + _input_errors(self.input_dir, "prepare") + self._mode_errors()

    def _mode_errors(self) -> list[str]:
        if self.mode is EvaluationMode.students:
            if self.fid_features is None:
                return []
            return [
                f"fid_features={self.fid_features} is for the rFID of mode=tokenizer: "
                "set mode=tokenizer or fid_features=null"
            ]
        errors = []
        if self.students:
            errors.append(
                f"students={{{','.join(self.students)}}} are not evaluated by mode=tokenizer: "
                "set mode=students"
            )
        for key, default in _changed(self, _OF_ANSWERS):
            errors.append(
                f"{key}={getattr(self, key)} is for the answers of students, not for "
                f"mode=tokenizer: set {key}={default} or mode=students"
            )
        return errors


_OF_ANSWERS = (
    "decoding",
    "temperature",
    "top_k",
    "top_p",
    "guidance",
    "num_prompts",
    "shared_prompt",
    "compile",
)


@dataclass
class InspectConfig:
    input_dir: str = "outputs/shapes/tokens"
    output_dir: str = "outputs/inspect"
    tokenizer: str = "shapes"
    num_images: int = 8
    seed: int = 0
    device: Device = Device.auto

    def validate(self) -> list[str]:
        return require_min(1, num_images=self.num_images) + _input_errors(self.input_dir, "encode")


@dataclass
class ConvertConfig:
    input: str = MISSING
    output_dir: str = MISSING
    output_format: TokenFormat = TokenFormat.shards
    tokenizer: str = "shapes"
    codebook_size: int = 8192
    bos: int | None = None
    eos: int | None = None
    task: str | None = None
    split: str | None = None
    tasks: dict[str, int] = field(default_factory=dict)
    overwrite: bool = False

    def validate(self) -> list[str]:
        errors = require_min(1, codebook_size=self.codebook_size)
        if len(set(self.tasks.values())) < len(self.tasks):
            listed = ", ".join(f"{task}: {images}" for task, images in self.tasks.items())
            errors.append(f"tasks={{{listed}}} gives two tasks the same number of images")
        if self.split is not None:
            errors += _split_errors([self.split])
        if Path(self.input).resolve() == Path(self.output_dir).resolve():
            errors.append(
                f"input and output_dir are both {self.input}: set output_dir to another directory"
            )
        return errors


@dataclass
class ExportConfig:
    checkpoint: str = MISSING
    format: ExportFormat = MISSING
    output_dir: str = MISSING
    dtype: DType = DType.float32
    overwrite: bool = False

    def validate(self) -> list[str]:
        return output_errors(Path(self.output_dir), self.overwrite)


ROOTS: dict[str, type] = {
    "prepare": PrepareConfig,
    "encode": EncodeConfig,
    "runs": RunsConfig,
    "generate": GenerateConfig,
    "evaluate": EvaluateConfig,
    "inspect": InspectConfig,
    "convert": ConvertConfig,
    "export": ExportConfig,
}


def groups(verb: str) -> Groups:
    """The schemas of the options of a verb's groups."""
    # Imported here, as these import torch, which the other verbs need not wait for.
    if verb == "prepare":
        from delvm.data.sources import SOURCES

        return {"source": {name: schema_of(source) for name, source in SOURCES.items()}}
    if verb == "encode":
        from delvm.data.augment import BalanceConfig
        from delvm.data.encode.executors import EXECUTORS

        executors = {name: schema_of(executor) for name, executor in EXECUTORS.items()}
        return {"balance": {"balance": BalanceConfig}, "executor": executors}
    return {}
