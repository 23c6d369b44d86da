"""Training runs below a folder as one table: what differs between their configs, how they did.

RUN/.hydra/config.yaml, hydra.yaml    the config and the options chosen, of `delvm train`
RUN/student or tokenizer/config.json  the network's, of a run without those; or its checkpoint's
RUN/metrics.csv                       the figures
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
from delvm.evaluation.training_curves import FIGURE, read_history
from delvm.storage import read_json, write_text

# The run's own name tells the one, and how it was launched the other.
_LEFT_OUT = {"output", "sweep"}
_WIDEST = 48  # of a name where the table is shown


@dataclass
class Run:
    """One training run.

    Attributes:
        name: its folder, from the one that was searched.
        settings: key of the config in full, or group -> value.
        figures: column -> number; empty where nothing was measured.
        faults: what could not be read, one line each.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def gather(root: Path) -> list[Run]:
    """Every run at or below a folder, that of the lowest `FIGURE` first.

    Raises:
        UserError: there is none.
    """
    runs = []
    for top, folders, files in os.walk(root, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folder = Path(top)
        if "metrics.csv" in files or (folder / ".hydra" / "config.yaml").is_file():
            runs.append(_run(folder, root))
    if not runs:
        raise UserError(
            f"no runs in {root}, which are folders with metrics.csv or .hydra/config.yaml: set "
            "input=FOLDER"
        )
    return sorted(runs, key=lambda run: (run.figures.get(f"best {FIGURE}", math.inf), run.name))


def _raise(error: OSError) -> None:
    raise error


def _run(folder: Path, root: Path) -> Run:
    run = Run(str(folder.relative_to(root)))
    try:
        run.settings = _settings(folder)
    except UserError as error:
        run.faults.append(str(error))
    try:
        run.figures = _figures(folder / "metrics.csv")
    except UserError as error:
        run.faults.append(str(error))
    return run


def _settings(folder: Path) -> dict[str, Any]:
    """The config of a run, flat.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    file = folder / ".hydra" / "config.yaml"
    if file.exists():
        chosen = folder / ".hydra" / "hydra.yaml"
        found = _flat(read_yaml(file))
        return (_choices(read_yaml(chosen)) if chosen.exists() else {}) | found
    for kind in ("student", "tokenizer"):
        if (file := folder / kind / "config.json").exists():
            return _of_network(read_json(file, f"{kind} config"), file)
    if (file := folder / "checkpoints" / "last.ckpt").exists():
        # Imported here: torch takes seconds, and most runs have a config.
        from delvm.interop.weight_files import read_pickle

        found = read_pickle(file, lazy=True)
        return _of_network(found.get("delvm") if isinstance(found, dict) else None, file)
    raise UserError(f"{folder} holds no config: neither .hydra nor an exported network")


def _of_network(said: Any, file: Path) -> dict[str, Any]:
    if not isinstance(said, dict) or not isinstance(said.get("config"), dict):
        raise UserError(f"{file} tells no config of a network")
    return _flat({str(said.get("kind")): {"net": said["config"]}})


class _Loader(yaml.SafeLoader):
    """Plain values; no aliases, by which a small file can hold more than fits any memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases, which no config of ours has")
        return super().compose_node(parent, index)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a config; ``${...}`` stays as it is written.

    Raises:
        UserError: it is damaged, or no mapping.
    """
    try:
        found = yaml.load(file.read_text("utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config {file} cannot be read: {reason}") from None
    if not isinstance(found, dict):
        raise UserError(f"config {file} is no mapping")
    return found


def _choices(hydra: dict[str, Any]) -> dict[str, Any]:
    """The options chosen from the groups of the verb."""
    node: Any = hydra
    for key in ("hydra", "runtime", "choices"):
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return {}
    return {str(key): value for key, value in node.items() if "/" not in str(key)}


def _flat(node: dict[str, Any], lead: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{lead}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def _figures(file: Path) -> dict[str, float]:
    """The last step, the one of the lowest `FIGURE`, and what was measured at each.

    Raises:
        UserError: nothing was measured.
    """
    history = read_history(file, finite=False)
    measured = {name: points for name, points in history.items() if name.startswith("val/")}
    if not measured:
        raise UserError(f"{file} holds no figures of a validation")
    found: dict[str, float] = {"step": max(step for line in history.values() for step, _ in line)}
    finite = [(value, step) for step, value in measured.get(FIGURE, []) if math.isfinite(value)]
    best = min(finite)[1] if finite else None
    if best is not None:
        found["best step"] = best
    # Those over all tasks come before those of one.
    for name in sorted(measured, key=lambda name: (name.count("/"), name != FIGURE, name)):
        found[f"last {name}"] = measured[name][-1][1]
        at_best = [value for step, value in measured[name] if step == best]
        if at_best:
            found[f"best {name}"] = at_best[-1]
    return found


def differing(runs: list[Run]) -> list[str]:
    """The keys that runs with a config do not have in common, in the order of the configs."""
    known = [run.settings for run in runs if run.settings]
    keys = dict.fromkeys(key for settings in known for key in settings if key not in _LEFT_OUT)
    return [key for key in keys if len({_typed(settings, key) for settings in known}) > 1]


def _typed(settings: dict[str, Any], key: str) -> str:
    """A value as it is typed in an override; nothing where the run has no such key."""
    if key not in settings:
        return ""
    value = settings[key]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "") if isinstance(value, list) else str(value)


def table(runs: list[Run]) -> list[list[str]]:
    """A header and a row a run: its name, what differs, its figures; all in full."""
    keys = differing(runs)
    columns = list(dict.fromkeys(name for run in runs for name in run.figures))
    columns.sort(key=lambda name: name.count("/"))  # runs of several kinds: means come first
    rows = [["run", *keys, *columns]]
    for run in runs:
        settings = [_typed(run.settings, key) for key in keys]
        figures = [run.figures.get(name) for name in columns]
        rows.append([run.name, *settings, *("" if x is None else repr(x) for x in figures)])
    return rows


def shown(runs: list[Run]) -> list[str]:
    """The same for a terminal, in lines: the figures over all tasks, at best, to four digits."""
    rows = table(runs)
    wanted = [
        not name.startswith(("last ", "best ")) or name == f"last {FIGURE}"
        or (name.startswith("best ") and name.count("/") < 2)
        for name in rows[0]
    ]  # fmt: skip
    cells = [[_short(x) for x, take in zip(row, wanted, strict=True) if take] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{x:<{width}}" for x, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _short(cell: str) -> str:
    """Four digits of a fraction, and no more of a name than tells it."""
    try:
        return cell if cell.lstrip("-").isdigit() else f"{float(cell):.4g}"
    except ValueError:
        return cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 1]}…"


def write_table(runs: list[Run], file: Path) -> None:
    """Write the table as CSV, whole or not at all."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table(runs))
    write_text(file, text.getvalue())


def is_table(file: Path) -> bool:
    """Whether a file is one that `write_table` wrote."""
    try:
        with file.open(encoding="utf-8") as lines:
            return lines.read(4) in ("run,", "run\n")
    except (OSError, UnicodeDecodeError):
        return False
