"""A sweep: one job for each combination of values, or for each trial of a search."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from delvm.commands.jobs import Job, raise_failures, searches
from delvm.errors import UserError


def run(hydra: Any, verb: str, overrides: Sequence[str]) -> None:
    """Run a sweep's jobs, by whatever launcher the config names.

    Raises:
        Halt: a job failed.
        UserError: the launcher or the search's storage cannot be used.
    """
    overrides = [*overrides, _named_by_what_varies(list(overrides)), "hydra.mode=MULTIRUN"]
    cfg = hydra.compose_config(
        config_name=verb,
        overrides=overrides,
        run_mode=RunMode.MULTIRUN,
        with_log_configuration=False,
    )
    folder = Path(str(OmegaConf.select(cfg, "hydra.sweep.dir")))
    # A name of its own: what a sweep that was killed had claimed is of no account.
    job = Job(verb, (folder / f".jobs-{os.urandom(6).hex()}").absolute())
    try:
        with _told(cfg):
            returned = hydra.multirun(verb, job, overrides)
        raise_failures(returned)
    finally:
        job.close()
    if searches(cfg.hydra):
        _tell_best(folder)


def _named_by_what_varies(overrides: list[str]) -> str:
    """The setting of Hydra that leaves what all jobs share out of their folders' names."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    shared = [each.key_or_group for each in parsed if not each.is_sweep_override()]
    listed = ",".join(f"'{key}'" for key in ("output", *shared))
    return f"hydra.job.config.override_dirname.exclude_keys=[{listed}]"


@contextmanager
def _told(cfg: DictConfig) -> Iterator[None]:
    """Turn what launchers and storages raise into one line."""
    try:
        yield
    except RuntimeError as error:  # of joblib and submitit; jobs raise Halt
        launcher = str(cfg.hydra.runtime.choices["hydra/launcher"])
        if launcher == "basic":
            raise
        raise UserError(
            f"hydra/launcher={launcher} ended with {type(error).__name__}: {_reason(error)}: what "
            "is done stays; set resume=auto to go on, or hydra/launcher=basic to run here"
        ) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("sqlalchemy", "optuna"):
            raise
        raise UserError(
            f"hydra.sweeper.storage={cfg.hydra.sweeper.storage} cannot be used: {_reason(error)}: "
            "set it to sqlite:///FILE in a folder that is there"
        ) from error


def _reason(error: Exception) -> str:
    """What went wrong, in one line: where the error tells a traceback, its end."""
    text = str(error)
    told = re.findall(r"^\w[\w.]*(?:Error|Exception)\b.*", text, re.MULTILINE)
    return " ".join((told[-1] if told else text).split())[:300]


def _tell_best(folder: Path) -> None:
    """Say which trial was the best, as optuna's sweeper has written it."""
    found = OmegaConf.load(folder / "optimization_results.yaml")
    if (value := OmegaConf.select(found, "best_value")) is not None:
        best = " ".join(f"{key}={each}" for key, each in found.best_params.items())
        print(f"best: {value:.4f} with {best}", file=sys.stderr, flush=True)
