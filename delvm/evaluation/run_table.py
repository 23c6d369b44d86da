"""Collect training runs into one table: how their configs differ, and their metrics.

RUN/.hydra/config.yaml, hydra.yaml    config and chosen options of `delvm train`
RUN/student or tokenizer/config.json  config of the network, for a run without the former
RUN/checkpoints/last.ckpt             likewise, for a run without an exported network
RUN/metrics.csv                       metrics
"""

import csv
import io
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from delvm.errors import UserError
from delvm.evaluation.report.terminal import aligned
from delvm.evaluation.training_curves import OBJECTIVE, read_history
from delvm.legacy import upgrade_model_metadata
from delvm.storage import read_json, write_text

# The output directory is the name of the run, and a sweep's settings are those of its launcher.
_IGNORED_KEYS = {"output", "output_dir", "sweep"}
_MAX_WIDTH = 48  # characters of a cell in a terminal


@dataclass
class Run:
    """One training run.

    Attributes:
        name: its directory, relative to the one that was searched.
        settings: dotted key of the config, or name of a group -> value.
        metrics: column -> value; empty where nothing was logged.
        errors: what could not be read, one line each.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def collect_runs(root: Path) -> list[Run]:
    """Find all runs at or below a directory, sorted by their best `OBJECTIVE`.

    Raises:
        UserError: there are none.
    """
    runs = []
    for top, folders, files in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folder = Path(top)
        if "metrics.csv" in files or (folder / ".hydra" / "config.yaml").is_file():
            runs.append(_run(folder, root))
    if not runs:
        raise UserError(
            f"no runs in {root}: a run has metrics.csv or .hydra/config.yaml: set input_dir=FOLDER"
        )
    return sorted(runs, key=lambda run: (run.metrics.get(f"best {OBJECTIVE}", math.inf), run.name))


def _raise(error: OSError) -> None:
    raise error


def _run(folder: Path, root: Path) -> Run:
    run = Run(str(folder.relative_to(root)))
    try:
        run.settings = _settings(folder)
    except UserError as error:
        run.errors.append(str(error))
    try:
        run.metrics = _metrics(folder / "metrics.csv")
    except UserError as error:
        run.errors.append(str(error))
    return run


def _settings(folder: Path) -> dict[str, Any]:
    """The config of a run, with dotted keys.

    Raises:
        UserError: it is missing or cannot be read.
    """
    file = folder / ".hydra" / "config.yaml"
    if file.exists():
        hydra = folder / ".hydra" / "hydra.yaml"
        config = _flat(read_yaml(file))
        return (_choices(read_yaml(hydra)) if hydra.exists() else {}) | config
    for kind in ("student", "tokenizer"):
        if (file := folder / kind / "config.json").exists():
            return _network_settings(read_json(file, f"{kind} config"), file)
    if (file := folder / "checkpoints" / "last.ckpt").exists():
        # Imported here: torch takes seconds, and most runs have a config.
        from delvm.interop.weight_files import read_pickle

        checkpoint = read_pickle(file, lazy=True)
        metadata = checkpoint.get("delvm") if isinstance(checkpoint, dict) else None
        return _network_settings(metadata, file)
    raise UserError(f"{folder} has no config: neither .hydra nor an exported network")


def _network_settings(metadata: Any, file: Path) -> dict[str, Any]:
    if not isinstance(metadata, dict) or not isinstance(metadata.get("config"), dict):
        raise UserError(f"{file} has no network config")
    metadata = upgrade_model_metadata(metadata)
    return _flat({str(metadata.get("kind")): {"net": metadata["config"]}})


class _Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
    """Loads plain values. Aliases are refused: with them a small file can fill any memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases, which delvm never writes")
        return super().compose_node(parent, index)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a config without resolving ``${...}``.

    Raises:
        UserError: it cannot be parsed, or is not a mapping.
    """
    try:
        config = yaml.load(file.read_text("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config {file} cannot be read: {reason}") from None
    if not isinstance(config, dict):
        raise UserError(f"config {file} is not a mapping")
    return config


def _choices(hydra: dict[str, Any]) -> dict[str, Any]:
    """The option chosen from each config group of the command."""
    node: Any = hydra
    for key in ("hydra", "runtime", "choices"):
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return {}
    return {str(key): value for key, value in node.items() if "/" not in str(key)}


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def _metrics(file: Path) -> dict[str, float]:
    """The last step, the step of the lowest `OBJECTIVE`, and all validation metrics at both.

    Raises:
        UserError: nothing was validated.
    """
    history = read_history(file, finite=False)
    validation = {name: points for name, points in history.items() if name.startswith("val/")}
    if not validation:
        raise UserError(f"{file} has no validation metrics")
    last_step = max(step for points in history.values() for step, _ in points)
    # Lightning numbers the rows by the steps before them, checkpoints by the steps done.
    metrics: dict[str, float] = {"step": last_step + 1}
    objective = [(value, step) for step, value in validation.get(OBJECTIVE, [])]
    finite = [(value, step) for value, step in objective if math.isfinite(value)]
    best_step = min(finite)[1] if finite else None
    if best_step is not None:
        metrics["best step"] = best_step + 1
    # Means over all tasks come before metrics of a single task.
    for name in sorted(validation, key=lambda name: (name.count("/"), name != OBJECTIVE, name)):
        metrics[f"last {name}"] = validation[name][-1][1]
        at_best = [value for step, value in validation[name] if step == best_step]
        if at_best:
            metrics[f"best {name}"] = at_best[-1]
    return metrics


def differing_keys(runs: list[Run]) -> list[str]:
    """The config keys whose values differ between the runs, in the order of the configs."""
    configs = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for config in configs for key in config if key not in _IGNORED_KEYS)
    return [key for key in keys if len({_format_override(config, key) for config in configs}) > 1]


def _format_override(settings: dict[str, Any], key: str) -> str:
    """A value as it is typed in an override; empty if the run has no such key."""
    if key not in settings:
        return ""
    value = settings[key]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)


def build_table(runs: list[Run]) -> list[list[str]]:
    """A header, then one row per run: name, settings that differ, metrics in full precision."""
    keys = differing_keys(runs)
    columns = list(dict.fromkeys(name for run in runs for name in run.metrics))
    columns.sort(key=lambda name: name.count("/"))  # means first, also with runs of several kinds
    rows = [["run", *keys, *columns]]
    for run in runs:
        settings = [_format_override(run.settings, key) for key in keys]
        metrics = [run.metrics.get(name) for name in columns]
        rows.append([run.name, *settings, *("" if x is None else repr(x) for x in metrics)])
    return rows


def format_table(runs: list[Run]) -> list[str]:
    """Lines for a terminal: the best metrics over all tasks, rounded to four digits."""
    rows = build_table(runs)
    shown = [index for index, name in enumerate(rows[0]) if _is_shown(name)]
    cells = [[_shorten(row[index]) for index in shown] for row in rows]
    return aligned(cells)


def _is_shown(column: str) -> bool:
    if column.startswith("best "):
        return column.count("/") < 2
    return not column.startswith("last ") or column == f"last {OBJECTIVE}"


def _shorten(cell: str) -> str:
    """Round a fraction to four digits, and cut a long name."""
    try:
        return cell if cell.lstrip("-").isdigit() else f"{float(cell):.4g}"
    except ValueError:
        return cell if len(cell) <= _MAX_WIDTH else f"{cell[: _MAX_WIDTH - 1]}…"


def write_table(runs: list[Run], file: Path) -> None:
    """Write the table as CSV, atomically."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(build_table(runs))
    write_text(file, text.getvalue())


def is_run_table(file: Path) -> bool:
    """Whether `write_table` wrote this file."""
    try:
        with file.open(encoding="utf-8") as lines:
            return lines.read(4) in ("run,", "run\n")
    except (OSError, UnicodeDecodeError):
        return False


def path_errors(root: Path, table: Path) -> list[str]:
    """Errors of a root of runs, and of where their table is to be written, one line each."""
    errors = []
    if not root.is_dir():
        errors.append(f"input_dir={root} is not a directory: set it to one with runs")
    if table.is_dir():
        errors.append(f"output={table} is a directory: set output={table / 'runs.csv'}")
    elif table.exists() and not is_run_table(table):
        errors.append(f"output={table} exists and is not a table of runs: set output=FILE.csv")
    return errors
