"""Progress of long work: what, how far, how fast, how long still; to stderr."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TextIO, TypeVar

T = TypeVar("T")


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """One line of progress.

    On a terminal the line is rewritten in place; elsewhere (a log file) a new line is
    written every ``every`` seconds, so that logs stay short. The last line is always written.
    """

    def __init__(
        self, total: int, what: str, unit: str, every: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.stream = stream or sys.stderr
        self.tty = self.stream.isatty()
        self.every = 0.2 if self.tty else every
        self.done = self.skipped = 0
        self.note = ""
        self.start = self.last = time.monotonic()

    def skip(self, n: int) -> None:
        """Count ``n`` as done before this run began: they take no part in the rate."""
        self.done += n
        self.skipped += n

    def update(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more as done; ``note`` is shown at the end of the line until the next one."""
        self.done += n
        self.note = note or self.note
        now = time.monotonic()
        if now - self.last >= self.every and self.done < self.total:
            self.last = now
            self._write(now)

    def _write(self, now: float, end: bool = False) -> None:
        spent = max(now - self.start, 1e-9)
        rate = (self.done - self.skipped) / spent
        rates = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"
        if end:
            times = f"in {clock(spent)}"
        else:
            times = f"{clock((self.total - self.done) / rate)} left" if rate else "-:-- left"
        line = (
            f"{self.what}: {self.done:,}/{self.total:,} {self.unit}, {rates} {self.unit}/s, {times}"
        )
        line += f"  {self.note}" if self.note else ""
        if self.tty:
            self.stream.write("\r\033[K" + line + ("\n" if end else ""))
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def say(self, line: str) -> None:
        """Write a line of its own above the line of progress."""
        self.stream.write(("\r\033[K" if self.tty else "") + line + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Write the last line."""
        self._write(time.monotonic(), end=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def track(iterable: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """Yield from ``iterable`` while showing progress."""
    with Progress(total, what, unit) as bar:
        for item in iterable:
            yield item
            bar.update()


def say(line: str) -> None:
    """Write a line to stderr, where progress goes."""
    print(line, file=sys.stderr, flush=True)


def say_kept(what: str, where: object, names: list[str]) -> None:
    """Say which parts of a job an earlier run has finished."""
    if names:
        say(f"{what}: kept in {where}, finished with the same settings: {', '.join(names)}")
