"""The error a user can mend, and the nearest valid name for a mistyped one."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend: shown as its own text, without a traceback, exit code 2.

    The text names both values that disagree and the override to type.
    """

    exit_code = 2


class Suspicious(UserError):
    """The work was done, and what it found wants a look: exit code 3."""

    exit_code = 3


class Interrupted(UserError):
    """The work was stopped by a signal, after what was done had been saved: 128 + the signal."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.exit_code = 128 + number


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option closest to ``name`` in spelling, or None when nothing is close."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return found[0] if found else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """``did you mean 'x'?`` when an option is close, else the list of valid ones."""
    choices = sorted(options)
    close = nearest(name, choices)
    return f"did you mean '{close}'?" if close else f"choose from: {', '.join(choices)}"
