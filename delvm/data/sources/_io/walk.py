"""Every path below a directory, with the directories that links lead to."""

import os
from collections.abc import Iterator
from pathlib import Path

from delvm.errors import UserError
from delvm.progress import log


def walk(folder: Path) -> Iterator[Path]:
    """Files and directories below a directory, in no particular order.

    Links to directories are followed. Not followed, and logged, are links to a directory that
    contains them, and links that lead nowhere.

    Raises:
        UserError: a directory cannot be read.
    """
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [(str(folder), frozenset())]
    while stack:
        path, above = stack.pop()
        try:
            status = os.stat(path)
            inside = above | {(status.st_dev, status.st_ino)}
            with os.scandir(path) as entries:
                for entry in entries:
                    yield Path(entry.path)
                    if entry.is_dir() and not _leads_up(entry, inside):
                        stack.append((entry.path, inside))
                    elif entry.is_symlink() and not os.path.exists(entry.path):
                        log(f"prepare: {entry.path} is a link that leads nowhere, left out")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _leads_up(entry: os.DirEntry[str], above: frozenset[tuple[int, int]]) -> bool:
    if not entry.is_symlink():
        return False
    status = entry.stat()
    if (status.st_dev, status.st_ino) not in above:
        return False
    log(f"prepare: {entry.path} is a link to a directory that contains it, left out")
    return True
