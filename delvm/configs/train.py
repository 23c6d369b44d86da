"""The schemas of `delvm train`: those of the training run itself, made ready for composition."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from delvm.data.datasets.images import ImagesConfig
from delvm.data.datasets.sentences import SentencesConfig
from delvm.training.config import (
    DistillationModule,
    LoggerConfig,
    ModuleConfig,
    OptimConfig,
    ShardedConfig,
    StrategyConfig,
    StudentConfig,
    StudentModule,
    TeacherConfig,
    TokenizerConfig,
    TokenizerModule,
    TrainConfig,
    TrainerConfig,
)


@dataclass
class GivenTeacher(TeacherConfig):
    """A teacher of which the checkpoint is still to be named."""

    checkpoint: str | None = MISSING


@dataclass
class TrainSchema(TrainConfig):
    """A training run of which each part is still to be chosen from its group."""

    module: ModuleConfig = MISSING
    tokenizer: TokenizerConfig = MISSING
    student: StudentConfig = MISSING
    # Any: the option that is chosen brings its schema. A type here would give a teacher its
    # default (none) where the option asks for a value, and a union of dataclasses is unknown.
    teacher: Any = MISSING
    data: Any = MISSING
    optim: OptimConfig = MISSING
    trainer: TrainerConfig = MISSING
    strategy: StrategyConfig = MISSING
    logger: LoggerConfig = MISSING


# Group in conf/ -> its schemas by name.
GROUPS: dict[str, dict[str, type]] = {
    "module": {
        "tokenizer": TokenizerModule,
        "student": StudentModule,
        "distillation": DistillationModule,
    },
    "tokenizer": {"tokenizer": TokenizerConfig},
    "student": {"student": StudentConfig},
    "teacher": {"none": TeacherConfig, "checkpoint": GivenTeacher},
    "data": {"sentences": SentencesConfig, "images": ImagesConfig},
    "optim": {"adamw": OptimConfig},
    "trainer": {"trainer": TrainerConfig},
    "strategy": {"strategy": StrategyConfig, "sharded": ShardedConfig},
    "logger": {"logger": LoggerConfig},
}

SCHEMAS = {"train": (TrainSchema, GROUPS)}
