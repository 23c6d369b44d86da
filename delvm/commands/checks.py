"""Faults that no single key shows: all are collected and told at once."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from delvm.commands.schema import (
    ConvertConfig,
    EncodeConfig,
    EvaluateConfig,
    ExportConfig,
    GatherConfig,
    GenerateConfig,
    InspectConfig,
    PrepareConfig,
    Subject,
)
from delvm.data.types import SPLITS
from delvm.errors import UserError, did_you_mean
from delvm.storage import as_path


def check(verb: str, cfg: Any) -> None:
    """Check a verb's config across its groups, before any work is done.

    Raises:
        UserError: with every fault; each names both values and the override to type.
    """
    found = faults(verb, cfg)
    if len(found) == 1:
        raise UserError(found[0])
    if found:
        raise UserError("\n  - ".join([f"{len(found)} faults in the config:", *found]))


def faults(verb: str, cfg: Any) -> list[str]:
    """Every fault of a verb's config, one line each."""
    if verb == "train":
        from delvm.commands.checks_train import train_faults

        return train_faults(cfg)
    checks: dict[str, Callable[[Any], list[str]]] = {
        "prepare": _prepare,
        "encode": _encode,
        "runs": _gather,
        "generate": _generate,
        "evaluate": _evaluate,
        "inspect": _inspect,
        "convert": _convert,
        "export": _export,
    }
    return checks[verb](cfg)


def at_least(least: float, values: dict[str, float | None]) -> list[str]:
    """A fault for each value below ``least``; None is no value."""
    return [
        f"{key}={value} is below {least}: set {key}={least} or more"
        for key, value in values.items()
        if value is not None and value < least
    ]


def _splits(splits: list[str]) -> list[str]:
    if not splits:
        return [f"no splits given: set splits=[{','.join(SPLITS)}]"]
    wrong = [split for split in splits if split not in SPLITS]
    return [f"unknown split '{split}': {did_you_mean(split, SPLITS)}" for split in wrong]


def _prepare(cfg: PrepareConfig) -> list[str]:
    return _splits(cfg.splits) + at_least(1, {"shard_size": cfg.shard_size})


def _of(named: dict[str, Any], *names: str) -> dict[str, float | None]:
    """The settings of an executor that have one of these names."""
    return {key: value for key, value in named.items() if key.partition(".")[2] in names}


def _encode(cfg: EncodeConfig) -> list[str]:
    found = _splits(cfg.splits) + at_least(
        1,
        {"batch_size": cfg.batch_size, "balance.examples_per_task": cfg.balance.examples_per_task},
    )
    named = {f"executor.{key}": value for key, value in asdict(cfg.executor).items()}
    found += at_least(0, _of(named, "workers", "threads", "max_restarts"))
    found += at_least(1, _of(named, "cpus_per_worker", "timeout_min", "mem_gb"))
    if not as_path(cfg.input).is_dir():
        found.append(f"input={cfg.input} not found: run `delvm prepare output={cfg.input}`")
    elif as_path(cfg.input).resolve() == as_path(cfg.output).resolve():
        found.append(f"input and output are both {cfg.input}: set output to another folder")
    return found


def _sampling(cfg: GenerateConfig | EvaluateConfig) -> list[str]:
    found = at_least(0, {"temperature": cfg.temperature})
    found += at_least(1, {"top_k": cfg.top_k, "batch_size": cfg.batch_size})
    if cfg.top_p is not None and not 0 < cfg.top_p <= 1:
        found.append(f"top_p={cfg.top_p} is no share: set it above 0 and up to 1, or top_p=null")
    for key, value in (("top_k", cfg.top_k), ("top_p", cfg.top_p)):
        if value is not None and cfg.temperature == 0 and not any(key in each for each in found):
            found.append(
                f"{key}={value} does nothing at temperature=0, which takes the likeliest token: "
                f"set temperature=1 or {key}=null"
            )
    return found


def _gather(cfg: GatherConfig) -> list[str]:
    # Imported here, as is all that reads results.
    from delvm.evaluation.run_table import is_run_table

    found, output = [], Path(cfg.output)
    if not Path(cfg.input).is_dir():
        found.append(f"input={cfg.input} is no folder: set it to one that holds runs")
    if output.is_dir():
        found.append(f"output={cfg.output} is a folder: set output={output / 'runs.csv'}")
    elif output.exists() and not is_run_table(output):
        found.append(f"output={cfg.output} is there and no table of runs: set output=FILE.csv")
    return found


def _generate(cfg: GenerateConfig) -> list[str]:
    return _sampling(cfg)


def _evaluate(cfg: EvaluateConfig) -> list[str]:
    found = _sampling(cfg) + at_least(1, {"queries": cfg.queries, "pairs": cfg.pairs})
    # Imported here: scoring brings torch with it.
    from delvm import tasks

    for task in cfg.tasks:
        if task not in tasks.NAMES and not (as_path(cfg.input) / "test" / task).is_dir():
            found.append(f"unknown task '{task}': {did_you_mean(task, tasks.NAMES)}")
    if not as_path(cfg.input).is_dir():
        found.append(f"input={cfg.input} not found: run `delvm prepare output={cfg.input}`")
    if cfg.subject is Subject.tokenizer and cfg.students:
        found.append(
            f"students={{{','.join(cfg.students)}}} and subject=tokenizer, which asks none: "
            "set subject=students"
        )
    if cfg.subject is Subject.tokenizer:
        drawn = {"temperature": (cfg.temperature, 0.0), "top_k": (cfg.top_k, None)}
        for key, (value, idle) in (drawn | {"top_p": (cfg.top_p, None)}).items():
            if value != idle:
                found.append(
                    f"{key}={value} is how students answer, which subject=tokenizer does not ask: "
                    f"set {key}={'null' if idle is None else idle} or subject=students"
                )
    if cfg.subject is Subject.students and cfg.extractor is not None:
        found.append(
            f"extractor={cfg.extractor} is for rFID, which subject=students does not have: "
            "set subject=tokenizer or extractor=null"
        )
    return found


def _convert(cfg: ConvertConfig) -> list[str]:
    found = at_least(1, {"codes": cfg.codes})
    if cfg.split is not None:
        found += _splits([cfg.split])
    if Path(cfg.input).resolve() == Path(cfg.output).resolve():
        found.append(f"input and output are both {cfg.input}: set output to another folder")
    return found


def _export(cfg: ExportConfig) -> list[str]:
    output = Path(cfg.output)
    if output.is_file():
        return [f"output={cfg.output} is a file: set output to a folder"]
    if not output.exists() or not any(output.iterdir()):
        return []
    if not cfg.overwrite:
        return [f"output={cfg.output} is there already: set overwrite=true to replace it"]
    if not (output / "config.json").is_file():
        return [f"output={cfg.output} holds no config.json, so no export: set it to another folder"]
    return []


def _inspect(cfg: InspectConfig) -> list[str]:
    found = at_least(1, {"pictures": cfg.pictures})
    if not as_path(cfg.input).is_dir():
        found.append(f"input={cfg.input} not found: run `delvm encode output={cfg.input}`")
    return found
