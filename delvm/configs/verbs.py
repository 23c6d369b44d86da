"""The typed schemas of all verbs but `delvm train`.

The comments of conf/verbs/VERB.yaml explain each key. `validate` returns the errors of the
settings, one line each.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from delvm.configs.generate import (
    Device,
    GenerateConfig,
    Precision,
    SamplingKeys,
    changed_keys,
    require_min,
)
from delvm.configs.serve import ServeConfig
from delvm.configs.store import Groups, schema_of
from delvm.data.resizing import ResizeMode
from delvm.data.types import SPLITS
from delvm.errors import did_you_mean
from delvm.interop.formats import output_errors
from delvm.storage import as_path

EvaluationMode = Enum("EvaluationMode", ["students", "tokenizer", "perplexity", "video"])
TokenFormat = StrEnum("TokenFormat", ["shards", "internlm_bin", "lvm_jsonl"])
ExportFormat = StrEnum("ExportFormat", ["delvm", "llama", "internlm_hf", "open_muse"])
PromptSelection = StrEnum("PromptSelection", ["random", "nearest"])  # without torch
DType = StrEnum("DType", ["float32", "bfloat16", "float16"])  # of exported weights


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
class TeacherCacheConfig:
    path: str = "${output_dir}/teacher"
    top_k: int = 16
    precision: Precision = Precision.fp32
    batch_size: int = 8
    num_sentences: int | None = None
    pairs_per_sentence: int = 4
    images_per_sentence: int | None = None
    task_weights: dict[str, float] = field(default_factory=dict)
    shuffle_window_shards: int = 32
    packing: bool = False
    shuffle_annotations: bool = False

    def validate(self) -> list[str]:
        names = (
            "top_k",
            "batch_size",
            "num_sentences",
            "pairs_per_sentence",
            "images_per_sentence",
            "shuffle_window_shards",
        )
        return [
            f"{name}={value} is below 1: set it to 1 or more"
            for name in names
            if (value := getattr(self, name)) is not None and value < 1
        ]


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
    teacher: str | None = None
    teacher_cache: TeacherCacheConfig = field(default_factory=TeacherCacheConfig)

    def validate(self) -> list[str]:
        errors = _split_errors(self.splits) + require_min(1, batch_size=self.batch_size)
        if self.teacher is not None:  # which reads tokens of output_dir
            return errors
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
class WandbConfig:
    """Arguments of Lightning's WandbLogger, which takes seconds to import."""

    _target_: str = "lightning.pytorch.loggers.WandbLogger"
    name: str | None = None
    project: str = "delvm"
    save_dir: str = "${output_dir}"
    offline: bool = True
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None
    notes: str | None = None


@dataclass
class EvaluateConfig(SamplingKeys):
    input_dir: str = "outputs/shapes/pairs"
    output_dir: str = "outputs/evaluate"
    tokenizer: str = "shapes"
    mode: EvaluationMode = EvaluationMode.students
    students: dict[str, str] = field(default_factory=dict)
    fid_features: str | None = None
    context_frames: int = 4
    num_frames: int | None = None
    window: int | None = None
    vgg_weights: str | None = None
    compare: list[str] = field(default_factory=list)
    jsonl: str | None = None
    prompt_dir: str | None = None
    resize: ResizeMode | None = None
    title: str = "Evaluation"
    tasks: list[str] = field(default_factory=list)
    num_queries: int = 100
    num_shots: int = 3
    num_prompts: int = 1
    num_draws: int = 1
    prompt_selection: PromptSelection = PromptSelection.random
    shared_prompt: bool = False
    batch_size: int = 32
    overwrite: bool = False
    precision: Precision = Precision.fp32
    compile: bool = False
    device: Device = Device.auto
    logger: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> list[str]:
        from delvm import tasks

        if self.logger and (self.compare or self.mode not in _LOGGED_MODES):
            return [
                f"logger={','.join(self.logger)} is for mode=students and mode=video: set "
                "logger=null"
            ]
        if self.compare:
            return self._compare_errors()
        if self.mode is EvaluationMode.perplexity or self.jsonl is not None:
            return self._jsonl_errors()
        errors = self.sampling_errors() + require_min(
            1,
            batch_size=self.batch_size,
            num_queries=self.num_queries,
            num_shots=self.num_shots,
            num_prompts=self.num_prompts,
            num_draws=self.num_draws,
            context_frames=self.context_frames,
            num_frames=self.num_frames,
            window=self.window,
        )
        if self.prompt_selection is PromptSelection.nearest and self.num_draws > 1:
            errors.append(
                f"num_draws={self.num_draws}, but prompt_selection=nearest always finds the same "
                "prompts: set num_draws=1"
            )
        if self.prompt_selection is PromptSelection.nearest and self.shared_prompt:
            errors.append(
                "shared_prompt=true, but prompt_selection=nearest finds other prompts for each "
                "query: set shared_prompt=false"
            )
        for task in self.tasks:
            if task not in tasks.NAMES and not (as_path(self.input_dir) / "test" / task).is_dir():
                errors.append(f"unknown task '{task}': {did_you_mean(task, tasks.NAMES)}")
        return errors + _input_errors(self.input_dir, "prepare") + self._mode_errors()

    def _compare_errors(self) -> list[str]:
        if len(self.compare) != 2:
            listed = ",".join(self.compare)
            return [f"compare=[{listed}] does not name two evaluations: set compare=[DIR,DIR]"]
        return [
            f"compare has {path}, which has no results.json: run `delvm evaluate output_dir={path}`"
            for path in self.compare
            if not (Path(path) / "results.json").exists()
        ]

    def _jsonl_errors(self) -> list[str]:
        if self.mode is not EvaluationMode.perplexity:
            return [f"jsonl={self.jsonl} is for mode=perplexity: set mode=perplexity or jsonl=null"]
        if self.jsonl is None:
            return ["mode=perplexity measures the lines of a file: set jsonl=FILE"]
        if not Path(self.jsonl).is_file():
            return [f"jsonl={self.jsonl} not found: set jsonl=FILE"]
        return []

    def _mode_errors(self) -> list[str]:
        """Keys that this mode does not read."""
        mode, errors = self.mode, []
        if mode is not EvaluationMode.tokenizer and self.fid_features is not None:
            errors.append(
                f"fid_features={self.fid_features} is for the rFID of mode=tokenizer: "
                "set mode=tokenizer or fid_features=null"
            )
        if mode is not EvaluationMode.video:
            errors += [
                f"{key}={getattr(self, key)} is for mode=video: set mode=video or {key}={default}"
                for key, default in changed_keys(self, _OF_VIDEO)
            ]
        if mode is EvaluationMode.video:
            errors += [
                f"{key}={getattr(self, key)} is for answers to prompts, and mode=video has none: "
                f"set {key}={default} or mode=students"
                for key, default in changed_keys(self, _OF_PROMPTS)
            ]
            if self.vgg_weights is not None and not Path(self.vgg_weights).is_file():
                errors.append(
                    f"vgg_weights={self.vgg_weights} not found: set vgg_weights=FILE to a VGG16 "
                    "with torchvision's names, or vgg_weights=null to leave LPIPS out"
                )
        if mode is not EvaluationMode.tokenizer:
            return errors
        if self.students:
            errors.append(
                f"students={{{','.join(self.students)}}} are not evaluated by mode=tokenizer: "
                "set mode=students"
            )
        for key, default in changed_keys(self, _OF_ANSWERS):
            errors.append(
                f"{key}={getattr(self, key)} is for the answers of students, not for "
                f"mode=tokenizer: set {key}={default} or mode=students"
            )
        return errors


_LOGGED_MODES = (EvaluationMode.students, EvaluationMode.video)
_OF_VIDEO = ("context_frames", "num_frames", "window", "vgg_weights")
_OF_PROMPTS = (
    "num_shots",
    "guidance",
    "num_prompts",
    "num_draws",
    "prompt_selection",
    "shared_prompt",
    "compile",
)
_OF_ANSWERS = (
    "decoding",
    "temperature",
    "top_k",
    "top_p",
    "guidance",
    "num_prompts",
    "num_draws",
    "prompt_selection",
    "shared_prompt",
    "overwrite",
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
    tokenizer: str | None = None
    dtype: DType = DType.float32
    overwrite: bool = False

    def validate(self) -> list[str]:
        errors = output_errors(Path(self.output_dir), self.overwrite)
        if self.format is ExportFormat.delvm and self.tokenizer is None:
            errors.append(
                "format=delvm writes a student with its tokenizer: set tokenizer=PATH to the one "
                "it was trained with"
            )
        elif self.format is not ExportFormat.delvm and self.tokenizer is not None:
            errors.append(
                f"tokenizer={self.tokenizer} is for format=delvm, not for format={self.format}: "
                "set tokenizer=null or format=delvm"
            )
        return errors


ROOTS: dict[str, type] = {
    "prepare": PrepareConfig,
    "encode": EncodeConfig,
    "runs": RunsConfig,
    "generate": GenerateConfig,
    "serve": ServeConfig,
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
    if verb == "evaluate":
        return {"logger": {"wandb": WandbConfig}}
    if verb == "encode":
        from delvm.data.augment import BalanceConfig
        from delvm.data.encode.executors import EXECUTORS

        executors = {name: schema_of(executor) for name, executor in EXECUTORS.items()}
        return {"balance": {"balance": BalanceConfig}, "executor": executors}
    return {}
