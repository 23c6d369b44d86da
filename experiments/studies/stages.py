"""Stages of a study: each runs when its inputs exist, in one thread, some at once."""

import multiprocessing
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from delvm.errors import UserError, did_you_mean
from delvm.progress import Progress, log
from delvm.storage import read_json, write_json
from experiments.studies.presets import PRESETS, Preset

_used = ["cpu"]  # the name of the preset


def use_preset(name: str) -> None:
    """Size all runs from now on by a preset.

    Raises:
        UserError: There is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"preset={name} is unknown: {did_you_mean(name, PRESETS)}")
    _used[0] = name


def preset() -> Preset:
    """The preset that sizes the runs."""
    return PRESETS[_used[0]]


def out() -> Path:
    """Where runs are; OUT in commands is replaced by it."""
    return preset().out


@dataclass(frozen=True)
class Stage:
    """One `delvm` command.

    Attributes:
        output: What it writes last, a path relative to OUT; the stage is done where it exists.
        command: Without ``delvm``, as for a CPU; OUT in it is replaced.
        needs: Outputs of other stages that it reads.
    """

    output: str
    command: str
    needs: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The arguments of `delvm`."""
        words = [word.replace("OUT", str(out())) for word in shlex.split(self.command)]
        return preset().apply(words)

    @property
    def is_done(self) -> bool:
        return (out() / self.output).exists()

    @property
    def record(self) -> Path:
        """The file next to its output that has its time."""
        path = out() / self.output
        return path.with_name(f"{path.name}.stage.json")

    @property
    def seconds(self) -> float | None:
        """How long it took; None if it is not done."""
        return (
            float(read_json(self.record, "time of a stage")["seconds"])
            if self.record.exists()
            else None
        )


class StageError(Exception):
    """A stage failed; the message names its command and its log."""


def run_stages(stages: Sequence[Stage], jobs: int = 2) -> None:
    """Run those that are not done, ``jobs`` at once.

    Raises:
        StageError: one failed; those that run at that time are finished first.
    """
    waiting = [stage for stage in _unique(stages) if not stage.is_done]
    running: dict[Future[tuple[int, float]], Stage] = {}
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(jobs, mp_context=context) as pool,
        Progress(len(waiting), "studies", "stages") as bar,
    ):
        while waiting or running:
            ready = [each for each in waiting if _inputs_exist(each)]
            for stage in ready[: jobs - len(running)]:
                waiting.remove(stage)
                running[pool.submit(run_command, stage.words, str(_log_path(stage)))] = stage
            if not running:
                raise StageError(f"nothing makes {', '.join(_missing(waiting[0]))}")
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                stage = running.pop(future)
                _finish(stage, *future.result())
                bar.update(1, stage.output)


def _finish(stage: Stage, code: int, seconds: float) -> None:
    if code or not stage.is_done:
        raise StageError(f"`delvm {stage.command}` failed ({code}): see {_log_path(stage)}")
    write_json(stage.record, {"command": stage.command, "seconds": seconds})
    log(f"{seconds:6.0f} s  {stage.output}")


def run_command(words: list[str], log_path: str) -> tuple[int, float]:
    """Run one command in this process, in one thread; returns its exit code and its seconds."""
    import torch

    from delvm import cli

    torch.set_num_threads(1)
    Path(log_path).parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with (
        Path(log_path).open("w", encoding="utf-8") as file,
        redirect_stdout(file),
        redirect_stderr(file),
    ):
        code = cli.main(words)
    return code, time.monotonic() - start


def _log_path(stage: Stage) -> Path:
    return out() / "logs" / f"{stage.output.replace('/', '_')}.log"


def _inputs_exist(stage: Stage) -> bool:
    return not _missing(stage)


def _missing(stage: Stage) -> list[str]:
    return [path for path in stage.needs if not (out() / path).exists()]


def _unique(stages: Iterable[Stage]) -> Iterator[Stage]:
    """Each stage once: studies share corpora and teachers."""
    seen: dict[str, Stage] = {}
    for stage in stages:
        if stage.output not in seen:
            seen[stage.output] = stage
            yield stage
        elif seen[stage.output] != stage:
            raise ValueError(f"two stages write {stage.output}")
