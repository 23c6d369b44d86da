"""List, run and tabulate studies: ``python -m experiments.studies [NAME ...] [preset=gpu]``."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from delvm.errors import UserError, did_you_mean
from delvm.storage import atomic_path
from experiments.studies.measure import read_rows, write_rows
from experiments.studies.stages import StageError, preset, run_stages, use_preset

ROOT = Path(__file__).resolve().parents[1]
USAGE = """usage: python -m experiments.studies NAME [NAME ...] [jobs=2] [preset=cpu] [measure_only]
runs what is not done yet, then writes results.csv and plot.png and prints the table;
preset=gpu: larger nets, batches and numbers of steps, to results_gpu.csv and plot_gpu.png
"""


def list_studies() -> list[str]:
    """The names of all studies: the folders that have a study.py."""
    return sorted(path.parent.name for path in ROOT.glob("*/study.py"))


def load(name: str) -> ModuleType:
    """The module of a study."""
    return importlib.import_module(f"experiments.{name}.study")


def cost(name: str) -> float | None:
    """Hours of one core that its training runs took; None if its results have no times."""
    path = ROOT / name / "results.csv"
    rows = read_rows(path) if path.exists() else []
    return sum(float(row.get("seconds") or 0) for row in rows) / 3600 or None


def listing() -> str:
    """A line for each study: its name, number of stages, cost and question."""
    lines = [f"{'study':<14}{'commands':>9}{'core time':>11}  question"]
    for name in list_studies():
        study = load(name)
        hours = cost(name)
        time = "-" if hours is None else tqdm.format_interval(hours * 3600)
        lines.append(f"{name:<14}{len(list(study.stages())):>9}{time:>11}  {study.QUESTION}")
    return "\n".join([*lines, "", USAGE])


def write_results(name: str) -> None:
    """Read what a study's stages wrote, to results.csv and plot.png next to its study.py."""
    study, suffix = load(name), preset().suffix
    results = ROOT / name / f"results{suffix}.csv"
    write_rows(results, study.measure())
    rows = read_rows(results)
    save_plot(study, rows, ROOT / name / f"plot{suffix}.png")
    print(study.table(rows))


def save_plot(study: ModuleType, rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the figure of a study."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    study.plot(rows, figure)
    with atomic_path(path) as tmp:
        figure.savefig(tmp, format="png", dpi=110)


def main(arguments: Sequence[str]) -> int:
    """Run the studies that are named; without arguments list all."""
    names, jobs, run = [], 2, True
    try:
        for argument in arguments:
            key, _, value = argument.partition("=")
            if key == "jobs" and value.isdigit() and int(value):
                jobs = int(value)
            elif key == "preset":
                use_preset(value)
            elif argument == "measure_only":
                run = False
            elif argument in list_studies():
                names.append(argument)
            else:
                raise UserError(f"no study {argument}: {did_you_mean(argument, list_studies())}")
        if not names:
            print(listing())
        elif run:
            run_stages([stage for name in names for stage in load(name).stages()], jobs)
    except (UserError, StageError) as error:
        print(f"studies: {error}", file=sys.stderr)
        return 2
    for name in names:
        write_results(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
