"""What every subject shares: a row, fair timing, the file of results and the table.

A subject is a module in this folder with `rows() -> list[Row]`. It measures ours and the peer in
the same run and turn about, so that whatever else the machine is doing falls on both alike.
"""

import json
import operator
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from delvm.errors import UserError
from delvm.storage import write_json

_GOAL = re.compile(r"(ours|ratio) (<=|>=|<|>) ([0-9.]+)")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class Row:
    """One measured number beside its peer's.

    Attributes:
        name: Unique; a later measurement of the same name replaces this one.
        ours: What was measured of this project, in `unit`.
        peer: The same of what it is compared with; None where there is no peer.
        ratio: ours / peer.
        goal: "ours < 1", "ratio >= 1.5" and the like; empty where there is none.
        unit: Of `ours` and `peer`.
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
        """A row whose ratio is computed."""
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
    """Median seconds a call takes, of several calls in turns: a b c, a b c, ...

    Args:
        cases: what to call, by name; each is called once beforehand to warm up.
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


def merge(path: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Put rows into the results file, in place of those of the same name; others stay.

    Returns:
        what the file now holds.

    Raises:
        UserError: the file that is there holds something else.
    """
    known: list[dict[str, Any]] = []
    if path.exists():
        try:
            known = json.loads(path.read_text("utf-8"))
            names = [row["name"] for row in known]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} holds no benchmark rows ({error!r}): remove it") from None
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
    """The rows as aligned text, with each goal and whether it was met; the notes below."""
    head = ("name", "ours", "peer", "ratio", "unit", "goal", "")
    cells = [
        (row.name, _short(row.ours), _short(row.peer), _short(row.ratio), row.unit, row.goal or "-",
         row.verdict)
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


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
