"""The error a user can mend, and the nearest valid name for a mistyped one."""

import difflib
import errno
from collections.abc import Iterable
from typing import Any

# What the system says of a path or a disk that the user can mend.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_MENDABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, *_FULL),
    *(errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


class UserError(Exception):
    """A mistake the user can mend: shown as its own text, without a traceback, exit code 2.

    The text names both values that disagree and the override to type.
    """

    exit_code = 2


class Suspicious(UserError):
    """The work was done, and what it found wants a look: exit code 3."""

    exit_code = 3


class Diverged(UserError):
    """Training went where no number is: a mistake of one run, and a result of a search."""


class Interrupted(UserError):
    """The work was stopped by a signal, after what was done had been saved: 128 + the signal."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[Any, ...]:
        return Interrupted, (str(self), self.exit_code - 128)


def mendable(error: OSError, where: object = None) -> Exception:
    """A UserError for what the user can mend, else the error itself.

    Args:
        where: what was being written, for an error that names no file.
    """
    if error.errno not in _MENDABLE:
        return error
    named = error.filename or where
    if error.errno in _FULL and named:
        return UserError(
            f"{error.strerror}: {named}: free some and run the same again (what is done stays), "
            "or set output to another place"
        )
    return UserError(f"{error.strerror}: {named or 'set output to another place'}")


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option closest to ``name`` in spelling, or None when nothing is close."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """``did you mean 'x'?`` when an option is close, else the list of valid ones."""
    choices = sorted(options)
    close = nearest(name, choices)
    return f"did you mean '{close}'?" if close else f"choose from: {', '.join(choices)}"
