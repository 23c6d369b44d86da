"""Where a run goes on: which checkpoint, and whether it is of this run."""

from pathlib import Path
from typing import Any

from delvm.errors import UserError
from delvm.interop.load import read_metadata
from delvm.interop.save import config_dict
from delvm.training.callbacks.checkpoint import REQUIRED_KEYS, latest_valid_checkpoint
from delvm.training.config import TokenizerModule, TrainConfig
from delvm.training.student import StudentTraining
from delvm.training.tokenizer import TokenizerTraining

# keys of a network's config that say how it is trained, not what it computes
FREE = ("init", "dropout", "drop_path", "max_seq_len", "attention", "commitment_cost")


def typed(value: object) -> str:
    """A value as it is typed in an override."""
    return "null" if value is None else str(value).replace(" ", "")


def checkpoint_of(config: TrainConfig, folder: Path) -> str | None:
    """The checkpoint to resume from, None to start anew.

    Raises:
        UserError: there is none, or starting anew would mix two runs in one folder.
    """
    resume, written = config.resume, folder / "checkpoints"
    if resume is None:
        if written.exists() and not config.overwrite:
            raise UserError(
                f"{folder} holds a run already: set resume=auto to go on with it, "
                "overwrite=true to replace it, or output=PATH"
            )
        return None
    if resume == "auto":
        newest = latest_valid_checkpoint(folder)
        return None if newest is None else str(newest)
    path = Path(resume)
    if path.exists():
        return str(path)
    raise UserError(f"checkpoint not found: {path} (set resume=PATH, or resume=auto)")


def check_resumed(
    file: str, module: TokenizerTraining | StudentTraining, config: TrainConfig
) -> None:
    """Refuse to resume from what is no checkpoint of such a run.

    Raises:
        UserError: it is damaged, not ours, or of another network.
    """
    found = read_metadata(Path(file))
    if not isinstance(found, dict) or not found.keys() >= REQUIRED_KEYS:
        raise UserError(f"resume={file} is no checkpoint of `delvm train`: set resume=PATH or null")
    _check_codes(file, found["delvm"], module)
    _check_average(file, found, config)
    theirs, ours = (each.get("config", {}) for each in (found["delvm"], config_dict(module.model)))
    # What a checkpoint does not say was added to the networks since, and is as it was by default.
    odd = sorted(key for key in theirs if theirs[key] != ours.get(key) and key not in FREE)
    differ = [f"{key} {typed(theirs[key])} != {typed(ours.get(key))}" for key in odd]
    if not odd:
        names = found["state_dict"].keys() ^ module.state_dict().keys()
        differ = sorted({name.split(".")[0] for name in names})
    if differ:
        raise UserError(
            f"resume={file} is of another network than this run's ({', '.join(differ)}): set "
            "output=PATH for a new run, or the values that the checkpoint has"
        )


def _check_codes(
    file: str, described: dict[str, Any], module: TokenizerTraining | StudentTraining
) -> None:
    """Refuse data whose ids are another tokenizer's."""
    theirs = described.get("tokenizer_fingerprint")
    ours = config_dict(module.model).get("tokenizer_fingerprint")
    if theirs != ours:
        raise UserError(
            f"resume={file} was trained on ids of tokenizer {theirs}, data.path holds those of "
            f"{ours}: set data.path=PATH, or begin a new run with output=PATH"
        )


def _check_average(file: str, found: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to take a moving average of the weights for the weights, or to begin one midway."""
    if not isinstance(config.module, TokenizerModule):
        return
    averaged, asked = "current_model_state" in found, config.module.average is not None
    if averaged != asked:
        has, wanted = ("an", "none") if averaged else ("no", f"average={config.module.average}")
        raise UserError(
            f"resume={file} holds {has} average of the weights, this run asks for {wanted}: set "
            f"module.average={'0.999 or what it was' if averaged else 'null'}, or output=PATH"
        )
