"""The schema of `delvm evaluate`.

The comments of conf/verbs/evaluate.yaml explain each key.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, ClassVar

from delvm.configs.generate import Device, Precision, SamplingKeys, changed_keys, require_min
from delvm.data.resizing import ResizeMode
from delvm.errors import did_you_mean
from delvm.storage import as_path

EvaluationMode = Enum("EvaluationMode", ["students", "tokenizer", "perplexity", "video"])
PromptSelection = StrEnum("PromptSelection", ["random", "nearest"])  # without torch


def input_errors(input_dir: str, verb: str) -> list[str]:
    """An error if a directory of shards, which a verb writes, is missing."""
    if as_path(input_dir).is_dir():
        return []
    return [f"input_dir={input_dir} not found: run `delvm {verb} output_dir={input_dir}`"]


@dataclass
class LocalConfig:
    """No settings of `delvm.data.encode.executors.local.Local`, which imports torch."""

    name: ClassVar[str] = "local"
    _target_: str = "delvm.data.encode.executors.local.Local"


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
    executor: Any = None

    def validate(self) -> list[str]:
        from delvm import tasks

        chosen = self.executor or LocalConfig
        executor = getattr(chosen, "name", type(chosen).__name__)
        if executor not in ("local", "ray"):
            return [f"executor={executor} is not for delvm evaluate: set executor=local or ray"]
        if self.compare or self.mode not in _MODES_OF_STUDENTS:
            if self.logger:
                return [f"logger={','.join(self.logger)} is for {_OF_STUDENTS}: set logger=null"]
            if executor != "local":
                return [f"executor={executor} is for {_OF_STUDENTS}: set executor=local"]
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
        return errors + input_errors(self.input_dir, "prepare") + self._mode_errors()

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


_OF_STUDENTS = "mode=students and mode=video"
_MODES_OF_STUDENTS = (EvaluationMode.students, EvaluationMode.video)
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
