"""The schema of `delvm evaluate`.

The comments of conf/verbs/evaluate.yaml explain each key.
"""

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, ClassVar

from delvm.configs.keys import (
    Device,
    Precision,
    SamplingKeys,
    changed_keys,
    input_errors,
    require_min,
    unused_errors,
)
from delvm.data.resizing import ResizeMode
from delvm.errors import did_you_mean
from delvm.storage import as_path

EvaluationMode = Enum("EvaluationMode", ["students", "tokenizer", "perplexity", "video"])
PromptSelection = StrEnum("PromptSelection", ["random", "nearest"])  # without torch

_SAMPLING = {"decoding", "temperature", "top_k", "top_p"}
_ANSWERS = {"input_dir", "tasks", "students", "num_queries", "batch_size", "precision", "overwrite"}
# What is asked for -> the keys that it uses, besides those that are for all.
USED: dict[str, set[str]] = {
    "mode=students": _ANSWERS
    | _SAMPLING
    | {"guidance", "num_shots", "num_prompts", "num_draws", "prompt_selection", "shared_prompt"}
    | {"compile"},
    "mode=video": _ANSWERS | _SAMPLING | {"context_frames", "num_frames", "window", "vgg_weights"},
    "mode=tokenizer": {"input_dir", "tasks", "num_queries", "batch_size", "fid_features"},
    "mode=perplexity": {"students", "jsonl", "prompt_dir", "resize", "precision"},
    "compare": set(),
}
KEYS = set[str]().union(*USED.values())
_COUNTS = [
    *("num_queries", "batch_size", "num_shots", "num_prompts", "num_draws"),
    *("context_frames", "num_frames", "window"),
]


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
        asked = "compare" if self.compare else f"mode={self.mode.name}"
        errors = self._unused_errors(asked) + self._executor_errors(asked)
        if self.compare:
            return errors + self._compare_errors()
        if self.mode is EvaluationMode.perplexity:
            return errors + self._jsonl_errors()
        errors += self.sampling_errors() + require_min(1, self, *_COUNTS)
        errors += input_errors(self.input_dir, "prepare") + self._task_errors()
        errors += self._nearest_errors()
        if self.vgg_weights is not None and not Path(self.vgg_weights).is_file():
            errors.append(
                f"vgg_weights={self.vgg_weights} not found: set vgg_weights=FILE to a VGG16 with "
                "torchvision's names, or vgg_weights=null to leave LPIPS out"
            )
        return errors

    def _unused_errors(self, asked: str) -> list[str]:
        """An error if keys are set that this mode does not use."""
        unused = KEYS - USED[asked]
        wanted = unused & set(changed_keys(self))
        modes = [mode for mode, used in USED.items() if wanted <= used]
        instead = "compare=[]" if self.compare else " or ".join(modes)
        return unused_errors(self, unused, asked, instead)

    def _executor_errors(self, asked: str) -> list[str]:
        chosen = self.executor or LocalConfig
        executor = getattr(chosen, "name", type(chosen).__name__)
        if executor not in ("local", "ray"):
            return [f"executor={executor} is not for delvm evaluate: set executor=local or ray"]
        if asked in ("mode=students", "mode=video"):
            return []
        if self.logger:
            return [f"{asked} does not use logger={','.join(self.logger)}: set logger=null"]
        if executor != "local":
            return [f"{asked} does not use executor={executor}: set executor=local"]
        return []

    def _task_errors(self) -> list[str]:
        from delvm.tasks import NAMES  # which imports torch

        prepared = as_path(self.input_dir) / "test"
        unknown = [task for task in self.tasks if task not in NAMES]
        unknown = [task for task in unknown if not (prepared / task).is_dir()]
        return [f"unknown task '{task}': {did_you_mean(task, NAMES)}" for task in unknown]

    def _nearest_errors(self) -> list[str]:
        if self.prompt_selection is not PromptSelection.nearest:
            return []
        errors = []
        if self.num_draws > 1:
            errors.append(
                f"num_draws={self.num_draws}, but prompt_selection=nearest always finds the same "
                "prompts: set num_draws=1"
            )
        if self.shared_prompt:
            errors.append(
                "shared_prompt=true, but prompt_selection=nearest finds other prompts for each "
                "query: set shared_prompt=false"
            )
        return errors

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
        if self.jsonl is None:
            return ["mode=perplexity measures the lines of a file: set jsonl=FILE"]
        if not Path(self.jsonl).is_file():
            return [f"jsonl={self.jsonl} not found: set jsonl=FILE"]
        return []
