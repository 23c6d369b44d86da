"""Errors that the user can fix, and the nearest valid name for a mistyped one."""

import difflib
import errno
import inspect
import re
from collections.abc import Iterable
from typing import Any

# What the system reports of a path or a disk that the user can fix.
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_FIXABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, *_DISK_FULL),
    *(errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}


MAX_LINE = 1_500  # characters of a line of a message


class UserError(Exception):
    """A mistake that the user can fix: shown as its own text, without a traceback, exit code 2.

    The text names both values that disagree and the override to type.
    """

    exit_code = 2

    def __init__(self, text: str = "", *rest: Any) -> None:
        if text.startswith("Caught ") and "DataLoader worker" in text:
            # torch raises the errors of data workers again, with their traceback as the text.
            kind = f"{type(self).__module__}.{type(self).__qualname__}: "
            text = text.rpartition(kind)[2].rstrip()
        # What it quotes may come from a file that is not trusted.
        super().__init__(_one_line_each(text), *rest)


def _one_line_each(text: str) -> str:
    """Text of at most `MAX_LINE` characters a line; only list items ("  - ") begin new lines."""
    lines = re.split(r"\n(?=  - )", text)
    return "\n".join(_shorten(" ".join(each.splitlines())) for each in lines)


def _shorten(line: str) -> str:
    if len(line) <= MAX_LINE:
        return line
    head, tail = line[: MAX_LINE * 2 // 3], line[-MAX_LINE // 4 :]
    return f"{head} [... {len(line) - len(head) - len(tail):,} characters ...] {tail}"


class CheckFailed(UserError):
    """The work is complete, and what it found needs a look: exit code 3."""

    exit_code = 3


class Diverged(UserError):
    """Training diverged (non-finite loss): an error of a run, an infinite objective in a search."""


class Interrupted(UserError):
    """A signal stopped the work after its state had been saved: exit code 128 + the signal."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.exit_code = 128 + number

    def __reduce__(self) -> tuple[Any, ...]:
        return Interrupted, (str(self), self.exit_code - 128)


def to_user_error(error: OSError, where: object = None) -> Exception:
    """A UserError for what the user can fix, else the error itself.

    Args:
        where: what was being written, for an error that names no file.
    """
    if error.errno not in _FIXABLE:
        return error
    path = error.filename or where
    if error.errno in _DISK_FULL and path:
        return UserError(
            f"{error.strerror}: {path}: free some space and run the same command again (what is "
            "done stays), or set the output to another disk"
        )
    return UserError(f"{error.strerror}: {path or 'set the output to another directory'}")


def missing_members(found: object, protocol: type) -> list[str]:
    """What an object of any class lacks of a protocol: attributes, and methods as they are called.

    Not `isinstance`, which does not name what is missing. Since Python 3.12 it also overlooks the
    submodules and parameters of a `torch.nn.Module`, which are not in the instance's ``__dict__``.
    """
    members = {name: name for name in inspect.get_annotations(protocol)}
    for name, member in vars(protocol).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            members[name] = f"{name}({', '.join(list(inspect.signature(member).parameters)[1:])})"
        elif isinstance(member, property):
            members[name] = name
    return [spelled for name, spelled in members.items() if not hasattr(found, name)]


def check_members(found: object, protocol: type, role: str) -> None:
    """Check once that an object of any class can play a role.

    Args:
        found: the object, usually of a class from outside of this package.
        protocol: what the role asks for.
        role: what it is used as, such as "source".

    Raises:
        UserError: it has not all of the members; the message names what is missing.
    """
    if missing := missing_members(found, protocol):
        kind = found if isinstance(found, type) else type(found)
        article = "an" if role[0] in "aeiou" else "a"
        raise UserError(
            f"{kind.__module__}.{kind.__qualname__} cannot be {article} {role}: it has no "
            f"{', '.join(missing)}; add {'it' if len(missing) == 1 else 'them'}, or set another "
            f"{role}"
        )


def closest_match(name: str, options: Iterable[str]) -> str | None:
    """The option closest to ``name`` in spelling, or None when none is close."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """``did you mean 'x'?`` when an option is close, else the list of valid ones."""
    choices = sorted(options)
    close = closest_match(name, choices)
    return f"did you mean '{close}'?" if close else f"choose from: {', '.join(choices)}"
