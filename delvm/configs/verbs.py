"""The typed schemas of all verbs but `delvm train`.

The comments of conf/verbs/VERB.yaml explain each key. `validate` returns the errors of the
settings, one line each.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from delvm.configs.evaluate import EvaluateConfig, LocalConfig, WandbConfig
from delvm.configs.generate import GenerateConfig
from delvm.configs.keys import Device, Precision, input_errors, require_min
from delvm.configs.serve import ServeConfig
from delvm.configs.store import Groups, schema_of
from delvm.data.types import SPLITS
from delvm.errors import did_you_mean
from delvm.interop.formats import output_errors
from delvm.storage import as_path

TokenFormat = StrEnum("TokenFormat", ["shards", "internlm_bin", "lvm_jsonl"])
ExportFormat = StrEnum("ExportFormat", ["delvm", "llama", "internlm_hf", "open_muse"])
DType = StrEnum("DType", ["float32", "bfloat16", "float16"])  # of exported weights


def _split_errors(splits: list[str]) -> list[str]:
    if not splits:
        return [f"no splits given: set splits=[{','.join(SPLITS)}]"]
    wrong = [split for split in splits if split not in SPLITS]
    return [f"unknown split '{split}': {did_you_mean(split, SPLITS)}" for split in wrong]


@dataclass
class PrepareConfig:
    source: Any = MISSING
    output_dir: str = "outputs/shapes/pairs"
    splits: list[str] = field(default_factory=lambda: ["train", "val", "test"])
    shard_size: int = 1000
    max_reject_fraction: float = 0.05
    overwrite: bool = False

    def validate(self) -> list[str]:
        return _split_errors(self.splits) + require_min(1, self, "shard_size")


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
        counts = ["top_k", "batch_size", "num_sentences", "pairs_per_sentence"]
        counts += ["images_per_sentence", "shuffle_window_shards"]
        return [
            f"{name}={value} is below 1: set it to 1 or more"  # its path is put in front
            for name in counts
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
        errors = _split_errors(self.splits) + require_min(1, self, "batch_size")
        if self.teacher is not None:  # which reads tokens of output_dir
            return errors
        errors += input_errors(self.input_dir, "prepare")
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
class InspectConfig:
    input_dir: str = "outputs/shapes/tokens"
    output_dir: str = "outputs/inspect"
    tokenizer: str = "shapes"
    num_images: int = 8
    seed: int = 0
    device: Device = Device.auto

    def validate(self) -> list[str]:
        return require_min(1, self, "num_images") + input_errors(self.input_dir, "encode")


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
        errors = require_min(1, self, "codebook_size")
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
        from delvm.data.ray_cluster import RayCluster

        executors = {"local": LocalConfig, "ray": schema_of(RayCluster)}
        return {"logger": {"wandb": WandbConfig}, "executor": executors}
    if verb == "encode":
        from delvm.data.augment import BalanceConfig
        from delvm.data.encode.executors import EXECUTORS

        executors = {name: schema_of(executor) for name, executor in EXECUTORS.items()}
        return {"balance": {"balance": BalanceConfig}, "executor": executors}
    return {}
