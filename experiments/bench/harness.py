"""Shared by all benchmarks: result rows, interleaved timing, the results file and the table.

A benchmark is a module in this folder with `rows() -> list[Row]`. It measures DeLVM and its peer in
the same run, in alternation, so that other load on the machine affects both equally.
"""

import json
import multiprocessing
import operator
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from delvm.errors import UserError
from delvm.storage import write_json

_GOAL = re.compile(r"(ours|ratio) (<=|>=|<|>) ([0-9.]+)")
Build = Callable[[], Callable[[], float]]  # of a step, which returns its seconds
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Row:
    """One measurement and that of the peer it is compared with.

    Attributes:
        name: Unique; a later measurement of the same name replaces this one.
        ours: Measured value of this project, in `unit`.
        peer: Measured value of the peer, in `unit`; None where there is no peer.
        ratio: ours / peer.
        goal: A bound such as "ours < 1" or "ratio >= 1.5"; empty where there is none.
        unit: Unit of `ours` and `peer`.
        note: What was compared with what, and how.
    """

    name: str
    ours: float
    peer: float | None
    ratio: float | None
    goal: str
    unit: str
    note: str

    @classmethod
    def compare(
        cls, name: str, ours: float, peer: float, *, goal: str = "", unit: str, note: str
    ) -> "Row":
        """A row with a peer; computes the ratio."""
        return cls(name, ours, peer, ours / peer, goal, unit, note)

    @property
    def verdict(self) -> str:
        """Either "met" or "missed"; "no goal" where the row has none.

        Raises:
            ValueError: the goal is not of the form "ours < 1".
        """
        if not self.goal:
            return "no goal"
        parts = _GOAL.fullmatch(self.goal)
        value = parts and getattr(self, parts[1])
        if not parts or value is None:
            raise ValueError(f"goal {self.goal!r} of {self.name} cannot be checked")
        return "met" if _COMPARE[parts[2]](value, float(parts[3])) else "missed"


def medians(cases: Mapping[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    """Median seconds per call, with the calls interleaved: a b c, a b c, ...

    Args:
        cases: name -> what to call; each is called once beforehand to warm up.
        repeats: timed calls of each.
    """
    for call in cases.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


@contextmanager
def processes(variants: Mapping[str, Build]) -> Iterator[dict[str, Pool]]:
    """A process of its own for each variant, to take steps in and to measure their memory.

    Args:
        variants: name -> what builds its step there.

    Yields:
        name -> its process, to ``apply`` `take_step` and `added_memory` in.
    """
    context = multiprocessing.get_context("spawn")
    pools = {name: context.Pool(1) for name in variants}
    try:
        for name, build in variants.items():  # an initializer that fails is repeated for ever
            pools[name].apply(_setup, (build,))
        yield pools
    finally:
        for pool in pools.values():
            pool.terminate()
            pool.join()


_state: dict[str, Any] = {}  # of a process


def _setup(build: Build) -> None:
    import torch._inductor.compile_fx  # noqa: F401 (in all processes: it counts as memory)

    _state["before"] = _peak_memory()
    _state["step"] = build()


def take_step() -> float:
    """Seconds of a step of this process."""
    return float(_state["step"]())


def added_memory() -> float:
    """MiB that building and taking steps have added to the peak of this process."""
    return _peak_memory() - float(_state["before"])


def _peak_memory() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def merge(path: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Add rows to the results file, replacing those of the same name and keeping all others.

    Returns:
        The new content of the file.

    Raises:
        UserError: the existing file does not hold benchmark rows.
    """
    known: list[dict[str, Any]] = []
    if path.exists():
        try:
            known = json.loads(path.read_text("utf-8"))
            names = [row["name"] for row in known]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} holds other data than benchmark rows ({error!r}): remove it"
            ) from None
    else:
        names = []
    for row in rows:
        if row.name in names:
            known[names.index(row.name)] = asdict(row)
        else:
            names.append(row.name)
            known.append(asdict(row))
    write_json(path, known)
    return known


def table(rows: Sequence[Row]) -> str:
    """The rows as an aligned text table with goals and verdicts, followed by the notes."""
    head = ("name", "ours", "peer", "ratio", "unit", "goal", "")
    cells = [
        (row.name, _format(row.ours), _format(row.peer), _format(row.ratio), row.unit,
         row.goal or "-", row.verdict)
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
    lines = []
    for line in (head, *cells):
        padded = [
            cell.rjust(width) if 1 <= i <= 3 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    notes = [f"{row.name}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, "", *notes])


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
