"""What Hydra calls for each job: in this process, or in another one that a launcher started.

joblib and submitit pickle the job's function, and the state of Hydra with it (schemas too). What
a worker knows beyond that is what it gets by importing this module: the resolver below.
"""

import hashlib
import math
import os
import pickle
import shutil
import sys
import traceback
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from delvm.commands import explain
from delvm.commands.checks import check
from delvm.errors import Diverged, UserError, to_user_error

# Verbs of which each job of a sweep gets a folder of its own, below output.
OWN_FOLDER = ("train", "evaluate", "inspect")


def _job_name(overrides: str) -> str:
    """A sweep job's folder: its overrides, made fit for a file name."""
    return overrides.replace("/", "-")[:200] or "job"


OmegaConf.register_new_resolver("job_name", _job_name, replace=True)


class Halt(BaseException):
    """Carries a job's error past Hydra, which would add lines to it and start the next job."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Failed:
    """What a job in another process returns where it would raise: its siblings run to their end.

    A search asks each job for its figure as a number; of one that failed that ends the search.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __float__(self) -> float:
        raise Halt(self.error)


class Job:
    """What Hydra calls for each job of a verb."""

    def __init__(self, verb: str, claims: Path | None = None) -> None:
        """Say what to run.

        Args:
            verb: name of the verb.
            claims: for a sweep, a folder that all of its jobs see, however they are launched.
        """
        self.verb, self.claims = verb, claims
        self.elsewhere = False  # whether this is a copy in another process

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"elsewhere": True}

    def __call__(self, raw: DictConfig) -> Any:
        """Run one job.

        Returns:
            for a search the figure it goes by, else None; in another process `Failed`.

        Raises:
            Halt: the job failed.
        """
        name = ""
        if self.claims is not None:
            hydra = HydraConfig.get()
            name = f"job {hydra.job.num}"
            print(f"{name}: {' '.join(hydra.overrides.task)}", file=sys.stderr, flush=True)
        try:
            return self._run(raw, name)
        except Exception as error:
            told = to_user_error(error) if isinstance(error, OSError) else error
            if name and isinstance(told, UserError):
                told.args = (f"{name}: {told}",)
            if self.elsewhere:
                return Failed(_portable(told, name))
            raise Halt(told) from error

    def close(self) -> None:
        """Forget which job writes where."""
        if self.claims is not None:
            shutil.rmtree(self.claims, ignore_errors=True)

    def _run(self, raw: DictConfig, name: str) -> float | None:
        cfg = typed(raw)
        if self.claims is not None:
            if self.verb in OWN_FOLDER:
                folder = Path(HydraConfig.get().runtime.output_dir)
                here = Path.cwd()
                cfg.output = str(
                    folder.relative_to(here) if folder.is_relative_to(here) else folder
                )
            self._claim(cfg.output)
            if self.verb == "train":
                from delvm.commands.checks_devices import refuse_sweep

                refuse_sweep(cfg)
        check(self.verb, cfg)
        verb = import_module(f"delvm.commands.{self.verb}")
        searched = self.claims is not None and searches(HydraConfig.get())
        if searched and not hasattr(verb, "figure"):
            raise UserError(
                f"delvm {self.verb} gives no figure to search by: set hydra/sweeper=basic"
            )
        try:
            verb.run(cfg)
        except Diverged as error:
            if not searched:
                raise
            print(f"{name}: {error}; it counts as infinite", file=sys.stderr, flush=True)
            return math.inf
        return self._figure(verb, cfg, name) if searched else None

    def _figure(self, verb: Any, cfg: Any, name: str) -> float:
        """What a search compares this job by."""
        figure: float | None = verb.figure(cfg)
        if figure is None:
            raise UserError(
                f"{cfg.output} has no validation, which the search goes by: set "
                f"trainer.val_every={cfg.trainer.max_steps} or less"
            )
        print(f"{name}: {verb.OBJECTIVE} {figure:.4f}", file=sys.stderr, flush=True)
        return figure

    def _claim(self, output: str) -> None:
        """Make sure that no other job of the sweep writes to the same place.

        Raises:
            UserError: one does.
        """
        assert self.claims is not None
        self.claims.mkdir(parents=True, exist_ok=True)
        number = str(HydraConfig.get().job.num)
        place = output if "://" in output else os.path.abspath(output)
        claim = self.claims / hashlib.sha256(place.encode()).hexdigest()[:32]
        try:
            with claim.open("x", encoding="utf-8") as file:
                file.write(number)
        except FileExistsError:
            # The same job may come again: SLURM queues anew what it preempted.
            if claim.read_text("utf-8") != number:
                raise UserError(
                    f"two jobs of this sweep write to output={output}: name the swept key in it, "
                    "as output='outputs/seed_${seed}'"
                ) from None


def searches(hydra: Any) -> bool:
    """Whether the sweeper goes by a figure of each job."""
    return OmegaConf.select(hydra, "sweeper.direction") is not None


def _portable(error: Exception, name: str) -> Exception:
    """An error that another process can read, with the traceback if it is a bug."""
    if not isinstance(error, UserError):
        error.add_note(f"in {name}, in a process of its own:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        plain = RuntimeError(f"{type(error).__name__}: {error}")
        plain.add_note("\n".join(getattr(error, "__notes__", [])))
        return plain
    return error


def raise_failures(returned: Any) -> None:
    """Tell what failed in other processes.

    Args:
        returned: by Hydra: batches of jobs, or None where the sweeper tells itself.

    Raises:
        Halt: with the one error, or with all of them.
    """
    jobs = [job for batch in returned or [] for job in batch]
    mistakes: list[UserError] = []
    for error in (job.return_value.error for job in jobs if isinstance(job.return_value, Failed)):
        if not isinstance(error, UserError):
            raise Halt(error)
        mistakes.append(error)
    if len(mistakes) == 1:
        raise Halt(mistakes[0])
    if mistakes:
        told = UserError("\n  - ".join([f"{len(mistakes)} jobs failed:", *map(str, mistakes)]))
        told.exit_code = mistakes[0].exit_code
        raise Halt(told)


def refuse_extra(node: DictConfig, where: str = "") -> None:
    """Refuse keys that ``+key=value`` put where the schema has no such field.

    Raises:
        UserError: with the first such key.
    """
    schema = OmegaConf.get_type(node)
    for key in node:
        name = f"{where}{key!s}"
        if is_dataclass(schema) and key not in schema.__dataclass_fields__:
            raise UserError(explain.unknown_key(name, list(schema.__dataclass_fields__)))
        value = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none():
            refuse_extra(value, f"{name}.")


def typed(cfg: DictConfig) -> Any:
    """A composed config as plain dataclasses.

    Raises:
        UserError: a key has no value yet, or is not in the schema.
    """
    refuse_extra(cfg)
    missing = OmegaConf.missing_keys(cfg)
    if missing:
        raise UserError(explain.missing(missing))
    return OmegaConf.to_object(cfg)
