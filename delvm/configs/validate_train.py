"""Errors across the groups of a training run, and between it and its data.

Each node's own settings are checked by its ``validate``. What no single node can check is checked
by functions of `delvm.training`, which get plain values from here. Nodes of foreign classes are not
checked: what they take is theirs to say.
"""

from contextlib import suppress
from types import UnionType
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from delvm.data.datasets.sentences import SentencesConfig
from delvm.data.teacher_cache.store import TeacherCache
from delvm.training.data.data_errors import student_data_errors, tokenizer_data_errors
from delvm.training.data.datamodules import ImageDataModule, SentenceDataModule
from delvm.training.distillation import DistillationModule
from delvm.training.offline_distillation import OfflineDistillationModule
from delvm.training.on_policy import OnPolicy, on_policy_errors
from delvm.training.optim import WeightDecayOn
from delvm.training.run.init_weights import init_errors
from delvm.training.run.launch import (
    Devices,
    attention_errors,
    compile_errors,
    device_errors,
    process_errors,
    strategy_errors,
    sweep_errors,
    trainer_errors,
)
from delvm.training.strategies import FSDP1Strategy, FSDP2Strategy
from delvm.training.student import StudentModule
from delvm.training.tokenizer import TokenizerModule
from delvm.training.tokenizer import trainer_errors as tokenizer_trainer_errors


def train_errors(cfg: DictConfig, in_sweep: bool) -> list[str]:
    """Every error across the groups of a training run, one line each."""
    trainer, module = cfg.trainer, target_of(cfg.module)
    asked = Devices(trainer.accelerator, trainer.devices, trainer.num_nodes, trainer.precision)
    if in_sweep and (errors := sweep_errors(asked)):
        return errors
    is_tokenizer = is_a(module, TokenizerModule)
    errors = trainer_errors(_settings(trainer), cfg.num_threads)
    decay = OmegaConf.select(cfg, "callbacks.weight_ema.decay")
    if decay is not None and not 0 <= decay < 1:
        errors.append(f"callbacks.weight_ema.decay={decay} is not in [0, 1): set it to 0.99")
    if decay is not None and is_a(target_of(cfg.strategy), FSDP2Strategy | FSDP1Strategy):
        errors.append(
            "callbacks.weight_ema averages complete weights, which this strategy shards: set "
            "strategy=ddp, or callbacks=default"
        )
    errors += device_errors(asked) + compile_errors(asked, cfg.module.get("compile", False))
    errors += compile_errors(asked, cfg.teacher.get("compile", False), "teacher.compile")
    errors += process_errors(asked)
    errors += strategy_errors(target_of(cfg.strategy), _settings(cfg.strategy), asked, is_tokenizer)
    errors += init_errors(cfg.resume, cfg.init_from, "tokenizer" if is_tokenizer else "student")
    if is_tokenizer:
        errors += _tokenizer_errors(cfg)
    elif is_a(module, StudentModule):
        errors += _student_errors(cfg, asked)
    elif cfg.optimizer.get("decay", WeightDecayOn.matrices) is not WeightDecayOn.matrices:
        errors.append(
            f"optimizer.decay={cfg.optimizer.decay.value} is for modules of DeLVM, this one groups "
            "its parameters itself: set optimizer.decay=matrices"
        )
    return errors + _on_policy_errors(cfg) + _teacher_errors(cfg)


def target_of(node: Any) -> Any:
    """The class or function of a node's `_target_`; None where there is none to be imported."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    try:
        return None if target is None else get_object(target)
    except Exception:  # not importable, which building it reports
        return None


def is_a(target: Any, kind: type | UnionType) -> bool:
    """Whether a target is a class or one derived from it."""
    return isinstance(target, type) and issubclass(target, kind)


def _settings(node: DictConfig) -> dict[str, Any]:
    """The values of a node that can be read: not those that refer to what a foreign part lacks."""
    found = {}
    for key in map(str, node):
        if not OmegaConf.is_missing(node, key):
            with suppress(InterpolationKeyError):
                found[key] = node[key]
    return found


def _tokenizer_errors(cfg: DictConfig) -> list[str]:
    """A tokenizer's training against its data and what it cannot do."""
    data, trainer = target_of(cfg.data), cfg.trainer
    if is_a(data, SentenceDataModule):
        return ["module=tokenizer learns from images, data is sentences: set data=images"]
    errors = tokenizer_trainer_errors(
        trainer.precision, trainer.accumulate_grad_batches, cfg.module.get("disc_weight")
    )
    if is_a(data, ImageDataModule):
        size = cfg.tokenizer.get("net", {}).get("resolution")
        errors += tokenizer_data_errors(cfg.data.path, size)
    return errors


def _student_errors(cfg: DictConfig, asked: Devices) -> list[str]:
    """The student and its tokenizer against the hardware and the ids on disk."""
    student, tokenizer = (_settings(node.get("net", {})) for node in (cfg.student, cfg.tokenizer))
    errors = attention_errors(student.get("attention"), asked, student.get("dropout", 0.0))
    if cfg.module.get("adapter") and cfg.init_from is None:
        errors.append("module.adapter adapts pretrained weights: set init_from=PATH")
    if cfg.module.get("adapter") and is_a(target_of(cfg.strategy), FSDP1Strategy):
        errors.append("module.adapter is not for strategy=fsdp: set strategy=fsdp2")
    if is_a(target_of(cfg.data), ImageDataModule):
        errors.append("module=student learns from sentences, data is images: set data=sentences")
    elif is_a(target_of(cfg.data), SentenceDataModule):
        names = ("path", "pairs_per_sentence", "images_per_sentence", "packing")
        data = SentencesConfig(
            **{name: cfg.data[name] for name in names},
            task_weights=dict(cfg.data.task_weights or {}),
        )
        errors += student_data_errors(data, tokenizer, student)
    return errors


def _on_policy_errors(cfg: DictConfig) -> list[str]:
    if not is_a(target_of(cfg.module.get("on_policy")), OnPolicy):
        return []
    return on_policy_errors(target_of(cfg.strategy), bool(cfg.data.get("packing")))


def _teacher_errors(cfg: DictConfig) -> list[str]:
    is_stored = is_a(target_of(cfg.teacher), TeacherCache)
    if is_a(target_of(cfg.module), OfflineDistillationModule):
        offline = ["module=offline_distillation needs stored distributions: set teacher=offline"]
        return [] if is_stored else offline
    if is_stored:
        return ["teacher=offline is stored distributions: set module=offline_distillation"]
    checkpoint = cfg.teacher.get("checkpoint")
    if is_a(target_of(cfg.module), DistillationModule):
        if checkpoint is None and str(cfg.teacher.get("_target_")).endswith("load_teacher"):
            return ["module=distillation needs a teacher: set teacher.checkpoint=PATH"]
    elif checkpoint is not None and "teacher" not in cfg.module:
        return [
            f"teacher.checkpoint={checkpoint}, and this module has no use for it: "
            "set module=distillation or teacher.checkpoint=null"
        ]
    return []
