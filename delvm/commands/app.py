"""What the verbs share: each file's `main` is a Hydra app that calls `run_job`."""

import hashlib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from delvm.commands import VERBS
from delvm.commands.explain import explained, missing_values, unknown_key
from delvm.configs import config_root
from delvm.configs.register import register
from delvm.configs.store import walk
from delvm.configs.text import quote_text
from delvm.configs.validate import check, in_sweep
from delvm.errors import Diverged, UserError, did_you_mean
from delvm.progress import log

# The command line of this process and its HYDRA_FULL_ERROR; None in a launcher's worker process.
started_as: tuple[list[str], str | None] | None = None


def run_hydra(verb: str, argv: list[str], schemas: bool = True) -> None:
    """Call a verb's `main`, which is a Hydra app and reads its arguments from sys.argv.

    Args:
        schemas: whether the config is composed, for which its schemas must be known.
    """
    if schemas:
        register(verb)
    sys.argv = ["delvm", *argv]
    import_module(f"delvm.commands.{verb}").main()


def verb_main(module: str, work: str = "run") -> Callable[[], Any]:
    """The `main` of a verb's file: a Hydra app, each job of which calls a function of the file.

    Args:
        module: name of the file's module; its last part is the verb's.
        work: name of the function, which gets the verb's dataclass (`delvm train`: the DictConfig)
            and returns the objective of a search, if it has one.
    """
    verb = module.rpartition(".")[2]

    def main(cfg: DictConfig) -> float | None:
        return run_job(verb, getattr(import_module(module), work), cfg)

    main.__module__ = module  # by which Hydra names the job
    folder = str(config_root(verb))
    as_app = hydra.main(version_base="1.3", config_path=folder, config_name=verb)
    called: Callable[[], Any] = as_app(main)
    return called


def run_job(verb: str, work: Callable[[Any], float | None], cfg: DictConfig) -> float | None:
    """Run one job of a verb.

    The config is checked before `work` is called, so a mistake leaves nothing behind. Under
    ``--multirun`` the job gets an output of its own below the verb's.

    Args:
        verb: name of the verb.
        work: does the verb's work with its dataclass (`delvm train`: with the DictConfig), and
            returns the objective of a search.
        cfg: the composed config.

    Raises:
        SystemExit: a user's mistake, which is its cause; it passes Hydra without a traceback.
        UserError: the same in a worker process of a launcher, where other jobs continue.
    """
    choices = HydraConfig.get().runtime.choices
    name = f"job {HydraConfig.get().job.num}: " if in_sweep() else ""
    if name:
        log(f"{name}{' '.join(HydraConfig.get().overrides.task)}")
    try:
        if name:
            _set_job_output(cfg)
        config = checked(verb, cfg)
        check(verb, cfg)
        with _as_started():
            return _objective(verb, work, config, name)
    except Exception as error:
        known = explained(error, verb)
        in_worker = choices["hydra/launcher"] != "basic"
        if not isinstance(known, UserError):
            if in_worker:  # the traceback does not travel with the error
                log(f"{name}{traceback.format_exc()}")
            raise
        known.args = (f"{name}{known}", *known.args[1:])
        if not in_worker:
            raise SystemExit(known.exit_code) from known
        log(f"delvm: {known}")
        raise known from error


def _objective(
    verb: str, work: Callable[[Any], float | None], config: Any, name: str
) -> float | None:
    """What the work returns; in a search it must be a number, infinite for a run that diverged."""
    try:
        objective = work(config)
    except Diverged as error:
        if not is_search():
            raise
        log(f"{name}{error}; it counts as infinite")
        return math.inf
    if is_search():
        if objective is None:
            raise UserError(
                f"delvm {verb} returned no objective to search by: set hydra/sweeper=basic"
            )
        log(f"{name}objective {objective:.4f}")
    return objective


@contextmanager
def _as_started() -> Iterator[None]:
    """Restore the command line and the environment, which Lightning starts more processes with."""
    if started_as is None:
        yield
        return
    of_hydra = sys.argv
    sys.argv, full_error = started_as
    if full_error is None:
        os.environ.pop("HYDRA_FULL_ERROR", None)
    try:
        yield
    finally:
        sys.argv, os.environ["HYDRA_FULL_ERROR"] = of_hydra, "1"


def checked(verb: str, cfg: DictConfig) -> Any:
    """A composed config as `work` takes it: the verb's dataclass, or the DictConfig for train.

    Raises:
        UserError: a key is not in the schema, or has no value.
    """
    missing = []
    for path, node in walk(cfg):
        schema: Any = OmegaConf.get_type(node)
        for key in map(str, node):
            # ``+key=value`` adds keys also where the schema has no such field
            if is_dataclass(schema) and key not in schema.__dataclass_fields__:
                known = OmegaConf.masked_copy(node, list(schema.__dataclass_fields__))
                raise UserError(unknown_key(verb, f"{path}{key}", known))
            if OmegaConf.is_missing(node, key):
                missing.append(f"{path}{key}")
    if missing:
        raise UserError(missing_values(missing))
    return cfg if verb == "train" else OmegaConf.to_object(cfg)


def is_search() -> bool:
    """Whether the sweeper compares jobs by the objective that each returns."""
    return in_sweep() and OmegaConf.select(HydraConfig.get().sweeper, "direction") is not None


def _set_job_output(cfg: DictConfig) -> None:
    """Give a job of a sweep its own output: OUTPUT/JOB, or OUTPUT/JOB/FILE.csv for a file.

    JOB is `hydra.sweep.subdir` where that is set, else the overrides that vary.
    """
    job = HydraConfig.get().sweep.subdir
    if job == ".":
        job = job_name(HydraConfig.get().job.override_dirname)
        if is_search():  # which may try the same values twice
            job = f"{HydraConfig.get().job.num}_{job}"
    key = "output_dir" if "output_dir" in cfg else "output"
    base, slash, last = str(cfg[key]).rpartition("/")
    is_file = key == "output" and PurePath(last).suffix
    cfg[key] = f"{base}{slash}{job}/{last}" if is_file else f"{cfg[key]}/{job}"


def job_name(overrides: str) -> str:
    """Overrides as the name of a directory, without the quotes of text that looks like a number."""
    name = overrides.replace("/", "-").replace("'", "") or "job"
    if len(name) <= 200:
        return name
    return f"{name[:190]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def short_name(target: str) -> str:
    """The class of a `_target_` in snake case: delvm.training.student.StudentModule -> student."""
    name = target.rpartition(".")[2].removesuffix("Module")
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


# For output_dir. Workers know it too, as they import this module.
OmegaConf.register_new_resolver("short_name", short_name, replace=True)


class ReportBest(Callback):
    """Hydra's callback that prints the best trial of a search, as optuna's sweeper has saved it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        found = OmegaConf.load(Path(str(config.hydra.sweep.dir)) / "optimization_results.yaml")
        if (value := OmegaConf.select(found, "best_value")) is not None:
            params = OmegaConf.select(found, "best_params")
            log(f"best: {value:.4f} with {' '.join(f'{key}={params[key]}' for key in params)}")


def save_config(cfg: DictConfig, output_dir: str | Path) -> None:
    """Write a run's config and overrides to OUTPUT_DIR/.hydra, where `delvm runs` reads them."""
    folder = Path(output_dir) / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, folder / "overrides.yaml")


def compose(verb: str, overrides: Sequence[str] = ()) -> Any:
    """A verb's config as its work takes it, for programs and notebooks.

    Args:
        verb: name of the verb.
        overrides: as on the command line.

    Returns:
        the verb's dataclass (`delvm.configs.verbs`), or a DictConfig for train; not yet checked
        across groups.

    Raises:
        UserError: an override is unknown, of the wrong type, or missing.
    """
    with _composed(verb, overrides) as cfg:
        return checked(verb, cfg)


def run(verb: str, overrides: Sequence[str] = ()) -> float | None:
    """Run a verb in this process as `delvm VERB` does, for programs and notebooks.

    Args:
        verb: name of the verb.
        overrides: as on the command line, without quotes for a shell; one job, so no sweeps.

    Returns:
        the lowest ``val/loss`` of train; None of other verbs.

    Raises:
        UserError: what `delvm VERB` ends with, in one line.
    """
    with _composed(verb, overrides) as cfg:
        config = checked(verb, cfg)
        check(verb, cfg)
        module = import_module(f"delvm.commands.{verb}")
        work = module.train if verb == "train" else module.run
        result: float | None = work(config)
        return result


@contextmanager
def _composed(verb: str, overrides: Sequence[str]) -> Iterator[DictConfig]:
    """A verb's config, with Hydra's own at hand as in a job; errors within are explained."""
    if verb not in VERBS:
        raise UserError(f"unknown verb '{verb}': {did_you_mean(verb, VERBS)}")
    if isinstance(overrides, str):
        raise UserError(f"overrides are one text: give a list, [{overrides!r}]")
    if flags := [each for each in overrides if each.startswith("-")]:
        raise UserError(f"{' '.join(flags)} is for the command line: give overrides alone")
    register(verb)
    overrides = quote_text(verb, overrides)
    of_hydra = HydraConfig.instance()
    before = of_hydra.cfg
    try:
        with hydra.initialize_config_dir(str(config_root(verb)), verb, version_base="1.3"):
            cfg = hydra.compose(verb, overrides, return_hydra_config=True)
        of_hydra.set_config(cfg)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        yield cfg
    except Exception as error:
        known = explained(error, verb)
        raise known from None if known is error else error
    finally:
        of_hydra.cfg = before
