"""Run benchmarks: ``python -m experiments.bench [only=NAME]``."""

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from delvm.errors import UserError, did_you_mean
from experiments import bench
from experiments.bench.harness import Row, merge, table

RESULTS = Path("outputs/bench.json")
_NOT_BENCHMARKS = ("__main__", "harness")


def list_benchmarks() -> list[str]:
    """The names of all benchmarks: the modules of this folder except for the harness."""
    return [m.name for m in pkgutil.iter_modules(bench.__path__) if m.name not in _NOT_BENCHMARKS]


def select(args: Sequence[str], known: Sequence[str]) -> list[str]:
    """The benchmarks that the command line selects; all by default.

    Raises:
        UserError: an argument is not only=NAME, or there is no such benchmark.
    """
    names = []
    for arg in args:
        key, _, name = arg.partition("=")
        if key != "only":
            raise UserError(f"unknown argument '{arg}': use only=NAME")
        if name not in known:
            raise UserError(f"unknown benchmark '{name}': {did_you_mean(name, known)}")
        names.append(name)
    return names or list(known)


def run_benchmarks(names: Sequence[str], results: Path) -> list[Row]:
    """Run benchmarks one after the other; the rows of each are saved before the next one starts."""
    measured: list[Row] = []
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name} ...", file=sys.stderr, flush=True)
        rows: list[Row] = importlib.import_module(f"{bench.__name__}.{name}").rows()
        merge(results, rows)
        measured += rows
    return measured


def summary(rows: Sequence[Row]) -> str:
    """One line: how many goals were met, and which were missed."""
    verdicts = [row.verdict for row in rows]
    goals = len(verdicts) - verdicts.count("no goal")
    missed = [row.name for row in rows if row.verdict == "missed"]
    suffix = f"; missed: {', '.join(missed)}" if missed else ""
    return f"{goals - len(missed)} of {goals} goals met{suffix}"


def main(args: Sequence[str]) -> int:
    """Run benchmarks and print their table and the path of the results."""
    try:
        measured = run_benchmarks(select(args, list_benchmarks()), RESULTS)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return UserError.exit_code
    print(f"{table(measured)}\n\n{summary(measured)}\nresults: {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
