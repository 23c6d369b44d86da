"""Every path below a directory, with the directories that links lead to."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from delvm.data.shards.manifest import Manifest
from delvm.data.shards.replacement import INCOMPLETE, MANIFEST
from delvm.data.types import SPLITS
from delvm.errors import UserError
from delvm.progress import log

CONTACT_SHEET = "contact_sheet.png"  # written by `delvm prepare` next to SPLIT/TASK


def walk(folder: Path) -> Iterator[Path]:
    """Files and directories below a directory, in no particular order.

    Links to directories are followed. Not followed, and logged, are links to a directory that
    contains them, links that lead nowhere, and the shards of an earlier `delvm prepare`, which
    would become examples a second time.

    Raises:
        UserError: a directory cannot be read.
    """
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [(str(folder), frozenset())]
    while stack:
        path, above = stack.pop()
        try:
            status = os.stat(path)
            inside = above | {(status.st_dev, status.st_ino)}
            is_split = os.path.basename(path) in SPLITS
            with os.scandir(path) as entries:
                for entry in entries:
                    if (is_split and _has_shards(entry)) or _is_contact_sheet(entry):
                        continue
                    yield Path(entry.path)
                    if entry.is_dir() and not _leads_up(entry, inside):
                        stack.append((entry.path, inside))
                    elif entry.is_symlink() and not os.path.exists(entry.path):
                        log(f"prepare: {entry.path} is a link that leads nowhere, left out")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _has_shards(entry: os.DirEntry[str]) -> bool:
    """Whether it is a directory that `delvm prepare` or `delvm encode` has written."""
    if not entry.is_dir():
        return False
    for name in (MANIFEST, INCOMPLETE):
        with suppress(UserError):  # there is none, or it is a file of others
            Manifest.load(Path(entry.path, name))
            log(f"prepare: {entry.path} contains shards that delvm has written, left out")
            return True
    return False


def _is_contact_sheet(entry: os.DirEntry[str]) -> bool:
    """Whether it is the overview that `delvm prepare` writes next to the splits."""
    return entry.name == CONTACT_SHEET and any(
        Path(entry.path).with_name(split).is_dir() for split in SPLITS
    )


def _leads_up(entry: os.DirEntry[str], above: frozenset[tuple[int, int]]) -> bool:
    if not entry.is_symlink():
        return False
    status = entry.stat()
    if (status.st_dev, status.st_ino) not in above:
        return False
    log(f"prepare: {entry.path} is a link to a directory that contains it, left out")
    return True
