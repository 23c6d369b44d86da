"""Run benchmarks: ``python -m experiments.bench [only=NAME]``."""

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from delvm.errors import UserError, did_you_mean
from experiments import bench
from experiments.bench.frame import Row, merge, table

RESULTS = Path("outputs/bench.json")
_FRAME = ("__main__", "frame")


def subjects() -> list[str]:
    """The names of all subjects: the modules of this folder but for the frame's own."""
    return [m.name for m in pkgutil.iter_modules(bench.__path__) if m.name not in _FRAME]


def chosen(words: Sequence[str], known: Sequence[str]) -> list[str]:
    """The subjects that the command line asks for; all when it names none.

    Raises:
        UserError: a word is not only=NAME, or there is no such subject.
    """
    names = []
    for word in words:
        key, _, name = word.partition("=")
        if key != "only":
            raise UserError(f"unknown argument '{word}': use only=NAME")
        if name not in known:
            raise UserError(f"unknown benchmark '{name}': {did_you_mean(name, known)}")
        names.append(name)
    return names or list(known)


def measure(names: Sequence[str], results: Path) -> list[Row]:
    """Run subjects one after the other; what is measured is on disk before the next begins."""
    measured: list[Row] = []
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name} ...", file=sys.stderr, flush=True)
        found: list[Row] = importlib.import_module(f"{bench.__name__}.{name}").rows()
        merge(results, found)
        measured += found
    return measured


def summary(rows: Sequence[Row]) -> str:
    """How many goals were met, in words."""
    verdicts = [row.verdict for row in rows]
    goals = len(verdicts) - verdicts.count("no goal")
    missed = [row.name for row in rows if row.verdict == "missed"]
    end = f"; missed: {', '.join(missed)}" if missed else ""
    return f"{goals - len(missed)} of {goals} goals met{end}"


def main(words: Sequence[str]) -> int:
    """Measure, print the table and say where the numbers are."""
    try:
        measured = measure(chosen(words, subjects()), RESULTS)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return UserError.exit_code
    print(f"{table(measured)}\n\n{summary(measured)}\nnumbers: {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
