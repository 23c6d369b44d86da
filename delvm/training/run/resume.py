"""Where a run continues: from which checkpoint, and whether that checkpoint is of this run."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from delvm.errors import UserError
from delvm.interop import sharded_checkpoint
from delvm.interop.load import read_metadata
from delvm.interop.save import config_dict
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN
from delvm.training.callbacks.checkpoint import REQUIRED_KEYS, latest_valid_checkpoint
from delvm.training.data.datamodules import StreamDataModule

# Keys of a network's config that say how it is trained, not what it computes.
TRAINING_ONLY_KEYS = (
    "init", "dropout", "drop_path", "max_seq_len", "attention", "commitment_cost",
    "activation_checkpointing",
)  # fmt: skip


# The state of a run in each of its checkpoints, as Lightning writes it.
_TYPES: dict[str, type] = {
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "lr_schedulers": list,
    "delvm": dict,
}
_MOMENTS = ("exp_avg", "exp_avg_sq")
# Class of a data module, under which a checkpoint has its position -> its option.
_DATA_OPTIONS = {
    "SentenceDataModule": "sentences",
    "StreamingSentenceDataModule": "streaming",
    "ImageDataModule": "images",
    "StreamingImageDataModule": "streaming_images",
}
# Functions of Lightning and torch that restore a part of it.
_RESTORING = {
    "resume_start", "restore_model", "restore_training_state", "load_state_dict",
    "load_model_state_dict", "restore_callbacks", "restore_datamodule", "migrate_checkpoint",
}  # fmt: skip


def format_override(value: object) -> str:
    """A value as it is typed in an override."""
    return "null" if value is None else str(getattr(value, "value", value)).replace(" ", "")


def resolve_resume(resume: str | None, output_dir: Path, overwrite: bool = False) -> str | None:
    """The checkpoint to resume from; None starts a new run.

    Args:
        resume: None, ``auto`` (the newest checkpoint of ``output_dir``, if any) or a path.
        output_dir: of the run.
        overwrite: whether a run in ``output_dir`` may be replaced.

    Raises:
        UserError: the checkpoint is missing, or a new run would mix with an old one.
    """
    if resume is None:
        if (output_dir / "checkpoints").exists() and not overwrite:
            raise UserError(
                f"{output_dir} holds a run already: set resume=auto to continue it, "
                "overwrite=true to replace it, or output_dir=PATH"
            )
        return None
    if resume == "auto":
        newest = latest_valid_checkpoint(output_dir)
        return None if newest is None else str(newest)
    if Path(resume).exists():
        return resume
    raise UserError(f"checkpoint not found: {resume} (set resume=PATH, or resume=auto)")


def validate_resume(
    path: str, trainer: L.Trainer, module: L.LightningModule, data: object = None
) -> None:
    """Refuse a checkpoint that is not of such a run.

    Args:
        path: of the checkpoint.
        trainer, module, data: of the run that is to resume from it.

    Raises:
        UserError: it is damaged, of another project, or of another network or tokenizer.
    """
    found = read_metadata(Path(path))
    if not isinstance(found, dict) or not found.keys() >= REQUIRED_KEYS:
        raise UserError(f"resume={path} is not a checkpoint of `delvm train`: set resume=PATH")
    _check_values(path, found, data)
    _check_weight_averaging(path, found, trainer)
    model: Any = getattr(module, "model", None)
    if type(model) in (VQGAN, Transformer) and "config" in found["delvm"]:
        ours = config_dict(model)
        _check_tokenizer(path, found["delvm"], ours)
        _check_network(path, found, ours, module)
    _check_tensors(path, found, module)


def _check_values(path: str, found: dict[str, Any], data: object) -> None:
    """Refuse a checkpoint that lacks a part of the state, which would be lost silently."""
    types = dict(_TYPES)
    if not sharded_checkpoint.can_load(path):  # else each process has its own
        types["optimizer_states"] = list
    if isinstance(data, StreamDataModule):
        name = type(data).__qualname__
        if name not in found and (others := sorted(_DATA_OPTIONS.keys() & found.keys())):
            raise UserError(
                f"resume={path} was trained on data={_DATA_OPTIONS[others[0]]}, another reader "
                f"than {name}: set data={_DATA_OPTIONS[others[0]]}, or begin a new run with the "
                "same weights by init_from=PATH"
            )
        types[name] = dict
    wrong = [key for key, kind in types.items() if not isinstance(found.get(key), kind)]
    if wrong:
        raise UserError(
            f"resume={path} is damaged: {', '.join(wrong)} missing or not of the right type: set "
            "resume=PATH to another checkpoint"
        )


def _are_optimizer_states(found: dict[str, Any], module: L.LightningModule) -> bool:
    """Whether there are states of optimizers, with moments in the shapes of parameters."""
    shapes = {parameter.shape for parameter in module.parameters()}
    states = found.get("optimizer_states")
    try:
        groups = [each["param_groups"] for each in states or ()]
        of_parameters = [state for each in states or () for state in each["state"].values()]
        moments = [state[key] for state in of_parameters for key in _MOMENTS if key in state]
    except (TypeError, KeyError, AttributeError):
        return False
    fit = all(isinstance(each, Tensor) and each.shape in shapes for each in moments)
    return bool(groups) and all(groups) and fit


def _check_tensors(path: str, found: dict[str, Any], module: L.LightningModule) -> None:
    """Refuse tensors of other shapes or kinds; names are compared by `_check_network`."""
    wrong, state = [], found["state_dict"]
    for name, own in module.state_dict().items():
        stored = state.get(name)
        if stored is None:  # of a sharded checkpoint only the names are known
            continue
        if not isinstance(stored, Tensor):
            wrong.append(f"{name} is not a tensor")
        elif stored.shape != own.shape or stored.is_floating_point() != own.is_floating_point():
            kinds = (f"{tuple(each.shape)} {each.dtype}" for each in (stored, own))
            wrong.append(f"{name} {' != '.join(kinds)}")
    if not sharded_checkpoint.can_load(path) and not _are_optimizer_states(found, module):
        wrong.append("optimizer_states")
    if wrong:
        raise UserError(
            f"resume={path} is damaged or not of this run: {', '.join(wrong[:8])}: set resume=PATH"
        )


@contextmanager
def restore_errors(path: str | None) -> Iterator[None]:
    """Report what a damaged checkpoint makes Lightning and torch raise in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        if path is None or not names & _RESTORING:
            raise
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"resume={path} is damaged: {reason}: set resume=PATH") from error


def config_mismatches(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Keys of two network configs that make them different functions."""
    # A key that a checkpoint lacks was added later, and its default is what was done before.
    return sorted(
        key for key in theirs if theirs[key] != ours.get(key) and key not in TRAINING_ONLY_KEYS
    )


def _check_network(
    path: str, found: dict[str, Any], ours: dict[str, Any], module: L.LightningModule
) -> None:
    old, new = found["delvm"].get("config", {}), ours.get("config", {})
    mismatched = config_mismatches(old, new)
    differences = [
        f"{key} {format_override(old[key])} != {format_override(new.get(key))}"
        for key in mismatched
    ]
    if not mismatched:
        names = found["state_dict"].keys() ^ module.state_dict().keys()
        differences = sorted({name.split(".")[0] for name in names})
    if differences:
        raise UserError(
            f"resume={path} is of another network than this run's ({', '.join(differences)}): set "
            "output_dir=PATH for a new run, or the values that the checkpoint has"
        )


def _check_tokenizer(path: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse data whose ids are another tokenizer's."""
    old, new = (each.get("tokenizer_fingerprint") for each in (theirs, ours))
    if old != new:
        raise UserError(
            f"resume={path} was trained on ids of tokenizer {old}, data.path holds those of {new}: "
            "set data.path=PATH, or start a new run with output_dir=PATH"
        )


def _check_weight_averaging(path: str, found: dict[str, Any], trainer: L.Trainer) -> None:
    """Refuse to read averaged weights as weights, or to start averaging midway."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    saved = "current_model_state" in found
    expected = any(isinstance(each, WeightAveraging) for each in callbacks)
    if saved != expected:
        has, asks = ("an average", "none") if saved else ("no average", "one")
        remedy = "callbacks=[default,weight_ema]" if saved else "callbacks=default"
        raise UserError(
            f"resume={path} holds {has} of the weights, this run asks for {asks}: set {remedy}, "
            "or output_dir=PATH"
        )
