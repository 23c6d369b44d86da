"""Run one verb as a Hydra app: compose, convert, check, then call its ``run``."""

import argparse
import copy
import hashlib
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, NoReturn

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from delvm.commands import explain, sweeps
from delvm.commands.checks import check
from delvm.commands.help import config_dir, keys
from delvm.commands.jobs import Halt, Job, refuse_extra, typed
from delvm.commands.schema import register
from delvm.errors import Diverged, UserError, did_you_mean, to_user_error
from delvm.progress import log


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: "):
            flag = message.split()[2].partition("=")[0]
            flags = [*self._option_string_actions, "--help"]
            raise UserError(f"unknown flag '{flag}': {did_you_mean(flag, flags)}")
        raise UserError(message)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-dir", "-cd")
    infos = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=infos)
    args = parser.parse_intermixed_args(argv)
    if (args.resolve or args.package) and not args.cfg:
        raise UserError("--resolve and --package go with --cfg job")
    if args.config_dir is not None:
        folder = Path(args.config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"config folder not found: {folder} (set --config-dir)")
        quoted = f"file://{folder}".replace("\\", "\\\\").replace("'", "\\'")
        args.overrides.append(f"hydra.searchpath=['{quoted}']")
    return args


@contextmanager
def _session(verb: str) -> Iterator[Any]:
    """Hydra over our configs, with the verb's schemas known."""
    register(verb)
    singleton = HydraConfig.instance()
    before = singleton.cfg
    try:
        with initialize_config_dir(str(config_dir()), job_name=verb, version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            _hide_groups(hydra.config_loader, set(keys(config_dir(), verb)))
            yield hydra
    finally:
        singleton.cfg = before


def _hide_groups(loader: Any, names: set[str]) -> None:
    """Make these plain keys, as in ``generate tokenizer=PATH``.

    Hydra takes an override for the choice of a group whenever conf/ has a folder of that name,
    though it be a group of another verb.
    """
    repository = loader.repository
    exists = repository.group_exists
    repository.group_exists = lambda config_path: config_path not in names and exists(config_path)


@contextmanager
def _explained(verb: str) -> Iterator[None]:
    """Turn what Hydra raises into one line; a job's own errors pass as `Halt`."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise UserError(explain.one_line(error, verb)) from error
    except OSError as error:  # of the run folder
        raise to_user_error(error) from error


def _without_hydra(cfg: DictConfig) -> DictConfig:
    cfg = copy.deepcopy(cfg)
    with read_write(cfg), open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def compose(verb: str, overrides: Sequence[str] = ()) -> Any:
    """A verb's config as its ``run`` takes it, for programs and notebooks.

    Args:
        verb: name of the verb.
        overrides: as on the command line.

    Returns:
        The verb's dataclass (`delvm.commands.schema`), not yet checked across groups.

    Raises:
        UserError: an override is unknown, of the wrong type, or missing.
    """
    with _session(verb) as hydra, _explained(verb):
        return typed(_without_hydra(_compose(hydra, verb, list(overrides))))


def compose_partly(verb: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The same before its conversion: mandatory values may still be missing."""
    with _session(verb) as hydra, _explained(verb):
        return _without_hydra(_compose(hydra, verb, list(overrides)))


def _compose(hydra: Any, verb: str, overrides: list[str]) -> DictConfig:
    cfg = hydra.compose_config(
        config_name=verb,
        overrides=overrides,
        run_mode=RunMode.RUN,
        with_log_configuration=False,
        from_shell=True,
    )
    # Some interpolations (${hydra:...}) read it; a run sets it again, with its own folder.
    HydraConfig.instance().set_config(cfg)
    return cfg


def start(verb: str, argv: Sequence[str]) -> None:
    """Run a verb with its arguments.

    Raises:
        UserError: a mistake in the arguments, or one that the verb found.
    """
    args = _parse(argv)
    overrides: list[str] = args.overrides
    for override in overrides:
        explain.refuse_malformed(override)
    try:
        with _session(verb) as hydra:
            _dispatch(hydra, verb, args, overrides)
    except Halt as halt:
        raise halt.error from halt.error.__cause__


def _dispatch(hydra: Any, verb: str, args: argparse.Namespace, overrides: list[str]) -> None:
    with _explained(verb):
        if args.info:
            hydra.show_info(args.info, config_name=verb, overrides=overrides)
            return
        sweep = args.multirun and not args.cfg
        cfg = None if sweep else _compose(hydra, verb, overrides)
        if cfg is None or (cfg.hydra.mode is RunMode.MULTIRUN and not args.cfg):
            sweeps.run(hydra, verb, overrides)
            return
        if args.cfg:
            refuse_extra(_without_hydra(cfg))
            hydra.show_cfg(verb, overrides, args.cfg, args.package, args.resolve)
            return
        plain = typed(_without_hydra(cfg))
    # Checked before Hydra makes the run folder: a mistake leaves nothing behind.
    check(verb, plain)
    with _explained(verb):
        hydra.run(verb, Job(verb), overrides)


# The words of this process's command line, verb included. Hydra reads sys.argv without the verb;
# Lightning starts further processes by the whole of it.
command_line: list[str] | None = None


def run_job(
    verb: str, cfg: DictConfig, work: Callable[[Any], float | None], typed_config: bool = True
) -> float | None:
    """Run one job of a verb: what the verb's `main(cfg)` under ``@hydra.main`` calls.

    The config is checked before `work` is called, so a mistake leaves nothing behind. Under
    ``--multirun`` the job gets a directory of its own below the output directory.

    Args:
        verb: name of the verb.
        cfg: the composed config.
        work: does the verb's work; in a search it returns the objective.
        typed_config: whether `work` takes the verb's dataclass; otherwise the DictConfig.

    Raises:
        SystemExit: a user's mistake, which is its cause; it passes Hydra without a traceback.
        UserError: the same in a worker process of a launcher, where other jobs continue.
    """
    hydra = HydraConfig.get()
    if command_line is not None:
        sys.argv = command_line
    name = f"job {hydra.job.num}: " if in_sweep() else ""
    if name:
        log(f"{name}{' '.join(hydra.overrides.task)}")
    try:
        return _checked_job(verb, cfg, work, typed_config, name)
    except Exception as error:
        known = to_user_error(error) if isinstance(error, OSError) else error
        if not isinstance(known, UserError):
            if hydra.runtime.choices["hydra/launcher"] != "basic":
                log(f"{name}{traceback.format_exc()}")  # which does not travel with the error
            raise
        known.args = (f"{name}{known}", *known.args[1:])
        if hydra.runtime.choices["hydra/launcher"] == "basic":
            raise SystemExit(known.exit_code) from known
        log(f"delvm: {known}")
        raise known from error


def _checked_job(
    verb: str, cfg: DictConfig, work: Callable[[Any], float | None], typed_config: bool, name: str
) -> float | None:
    refuse_extra(cfg)
    if missing := OmegaConf.missing_keys(cfg):
        raise UserError(explain.missing(missing))
    if name:
        set_job_output(cfg)
    config = typed(cfg) if typed_config else cfg
    check(verb, config)
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


def in_sweep() -> bool:
    """Whether this is one of several jobs (``--multirun``)."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def is_search() -> bool:
    """Whether the sweeper compares jobs by the objective that each returns."""
    return in_sweep() and OmegaConf.select(HydraConfig.get().sweeper, "direction") is not None


def set_job_output(cfg: DictConfig) -> None:
    """Give a job of a sweep an output of its own, named by the values that vary.

    OUTPUT becomes OUTPUT/JOB, and OUTPUT/FILE.csv becomes OUTPUT/JOB/FILE.csv.
    """
    hydra = HydraConfig.get()
    job = hydra.sweep.subdir
    if job == ".":
        job = job_name(hydra.job.override_dirname)
        job = f"{hydra.job.num}_{job}" if is_search() else job  # it may try a value twice
    key = "output_dir" if "output_dir" in cfg else "output"
    base, slash, last = str(cfg[key]).rpartition("/")
    file = key == "output" and PurePath(last).suffix
    cfg[key] = f"{base}{slash}{job}/{last}" if file else f"{cfg[key]}/{job}"


def job_name(overrides: str) -> str:
    """Overrides made fit for the name of a directory."""
    name = overrides.replace("/", "-") or "job"
    if len(name) <= 200:
        return name
    return f"{name[:190]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def save_config(cfg: DictConfig, output_dir: str | Path) -> None:
    """Write a run's config and overrides to OUTPUT_DIR/.hydra, where `delvm runs` reads them."""
    folder = Path(output_dir) / ".hydra"
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / "config.yaml")
    OmegaConf.save(HydraConfig.get().overrides.task, folder / "overrides.yaml")
