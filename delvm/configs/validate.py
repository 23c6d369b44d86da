"""Every error of a composed config at once: of each part by its own `validate`, then across parts.

Parts of foreign classes have no schema and are skipped: what they take is theirs to check.
"""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from delvm.configs.store import walk
from delvm.errors import UserError
from delvm.storage import is_url

# Paths that may be URLs; all other inputs and outputs are local.
_TAKES_URLS = {
    "prepare": ("output_dir",),
    "encode": ("input_dir", "output_dir"),
    "evaluate": ("input_dir",),
    "inspect": ("input_dir",),
}


def in_sweep() -> bool:
    """Whether this is one of several jobs (``--multirun``)."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def check(verb: str, cfg: DictConfig) -> None:
    """Check a verb's config before any work is done.

    Raises:
        UserError: with every error; each names both values and the override to type.
    """
    errors = config_errors(verb, cfg)
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        raise UserError("\n  - ".join([f"{len(errors)} errors in the config:", *errors]))


def config_errors(verb: str, cfg: DictConfig) -> list[str]:
    """Every error of a verb's config, one line each.

    A part's `validate` names its keys from the part on ("lr=-1 is ..."); here the path of the part
    is put in front ("optimizer.lr=-1 is ...").
    """
    errors = [
        f"{key}={cfg[key]} is a URL, and delvm {verb} needs a local path: set {key}=PATH"
        for key in ("input", "input_dir", "output", "output_dir", "prompt", "query")
        if key in cfg and is_url(str(cfg[key])) and key not in _TAKES_URLS.get(verb, ())
    ]
    for path, node in walk(cfg):
        if not hasattr(OmegaConf.get_type(node), "validate"):
            continue
        try:
            part: Any = OmegaConf.to_object(node)
        except InterpolationKeyError:
            continue  # refers to keys that a foreign part lacks; an error only if it is built
        errors += [f"{path}{error}" for error in part.validate()]
    if verb == "train":
        from delvm.configs.validate_train import train_errors

        errors += train_errors(cfg, in_sweep())
    return errors
