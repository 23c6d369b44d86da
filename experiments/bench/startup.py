"""How long `delvm --help` takes: the answer must come before one wonders whether it hangs."""

import subprocess
import sys
from collections.abc import Callable

from experiments.bench.frame import Row, medians

REPEATS = 9


def rows() -> list[Row]:
    """Wall time of `delvm --help` beside that of an interpreter that does nothing."""
    seconds = medians(
        {"ours": _process("-m", "delvm", "--help"), "peer": _process("-c", "pass")}, REPEATS
    )
    return [
        Row.compare(
            "startup",
            seconds["ours"],
            seconds["peer"],
            goal="ours < 1",
            unit="s",
            note=f"delvm --help beside python -c pass; medians of {REPEATS}, turn about",
        )
    ]


def _process(*words: str) -> Callable[[], object]:
    command = [sys.executable, *words]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
