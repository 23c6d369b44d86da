"""Progress of long work (a tqdm bar, or lines in a log file), and notices; both to stderr."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")

LOG_INTERVAL_S = 10.0
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_LINE = "{desc}: {n_fmt}/{total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left{postfix}"
_LAST_LINE = "{desc}: {n_fmt}/{total_fmt}{unit} in {elapsed}, {rate_noinv_fmt}{postfix}"


class _StderrHandler(logging.Handler):
    """Writes the plain message to stderr, above a bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        # Not a StreamHandler, which would keep the stderr of the time it was made.
        tqdm.write(self.format(record), file=sys.stderr)
        sys.stderr.flush()


logger = logging.getLogger("delvm")
if not logger.handlers:
    # As Lightning's logger: messages do not appear again through a handler of the root logger.
    logger.addHandler(_StderrHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def log(message: str, level: int = logging.INFO) -> None:
    """Write a notice through the logger ``delvm``."""
    logger.log(level, message)


def log_kept(verb: str, where: object, names: list[str]) -> None:
    """Report which directories an earlier run has finished."""
    if names:
        log(f"{verb}: kept in {where}, finished with the same settings: {', '.join(names)}")


class Progress:
    """Progress of one piece of work: what, how far, the rate, the time left and a note.

    On a terminal this is a tqdm bar. Elsewhere (a log file) it is one line every
    ``LOG_INTERVAL_S`` seconds through the logger, so that logs stay short, and a last line.
    """

    def __init__(self, total: int, what: str, unit: str) -> None:
        """Start the clock.

        Args:
            total: Units of work.
            what: Name of the work, as "encode".
            unit: What is counted, as "pairs".
        """
        self.total, self.what, self.unit = total, what, unit
        self.done = self.skipped = 0
        self.note = ""
        self.start = self.last_line = time.monotonic()
        self.bar: tqdm | None = None
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=total, desc=what, unit=f" {unit}", bar_format=_BAR, smoothing=0,
                dynamic_ncols=True, miniters=1,
            )  # fmt: skip

    def skip(self, n: int) -> None:
        """Count ``n`` as done by an earlier run: they do not count for the rate."""
        self.done += n
        self.skipped += n
        if self.bar is not None:
            self.bar.initial += n
            self.bar.n += n

    def update(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more as done; ``note`` is shown at the end of the line until the next one."""
        self.done += n
        self.note = note or self.note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(n)
        elif time.monotonic() - self.last_line >= LOG_INTERVAL_S and self.done < self.total:
            self._log_line(_LINE)

    def _log_line(self, bar_format: str) -> None:
        self.last_line = time.monotonic()
        line = tqdm.format_meter(
            self.done, self.total, self.last_line - self.start, prefix=self.what,
            unit=f" {self.unit}", postfix=self.note, initial=self.skipped, bar_format=bar_format,
        )  # fmt: skip
        log(line)

    def close(self) -> None:
        """Write the last line."""
        if self.bar is not None:
            self.bar.close()
        else:
            self._log_line(_LAST_LINE)

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
    with Progress(total, what, unit) as progress:
        for item in iterable:
            yield item
            progress.update()
