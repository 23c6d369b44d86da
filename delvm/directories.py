"""Directories that appear complete or not at all, whatever other processes do to the same path."""

import ctypes
import errno
import glob
import os
import shutil
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_building: set[Path] = set()  # the parts of this process


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """A directory next to ``path``, which becomes ``path`` on success.

    An earlier directory at ``path`` is replaced only once the new one is complete. Processes that
    write the same path at once have a directory each, and the last one to finish stays. What a
    killed process has left is removed or, where it is the only copy, put back.
    """
    path = Path(path)
    if path.is_symlink():  # to another disk perhaps, where it stays
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_dir(path)
    machine = f"{zlib.crc32(socket.gethostname().encode()):08x}"
    _remove_leftovers(path, machine)
    tmp = path.with_name(f".{path.name}.{machine}-{os.getpid()}-{os.urandom(4).hex()}.part")
    _building.add(tmp)
    tmp.mkdir()
    try:
        yield tmp
        replace_dir(tmp, path)
    finally:
        _remove_dir(tmp)
        _building.discard(tmp)


def _remove_leftovers(path: Path, machine: str) -> None:
    """Remove the parts of ``path`` whose process has been killed, if it was on this machine."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.{machine}-*-*.part"):
        process = int(part.name.split("-")[-2])
        if part not in _building and (process == os.getpid() or not _is_running(process)):
            _remove_dir(part)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def replace_dir(new: Path, path: Path) -> None:
    """Rename a complete directory to the path of an earlier one, which is removed.

    A process killed here leaves the earlier one or the new one at ``path``. Only where a file
    system cannot exchange two directories in one operation, there may be neither for a moment: the
    earlier one is in .NAME.old then, and `recover_dir` puts it back.
    """
    recover_dir(path)
    if not path.exists() or not any(path.iterdir()):
        try:
            os.replace(new, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else another process has put one there in the meantime
        else:
            return
    if _exchange(new, path):
        _remove_dir(new)
    else:
        old = _old_dir(path)
        os.replace(path, old)
        os.replace(new, path)
        _remove_dir(old)


def recover_dir(path: Path) -> None:
    """Put back, or remove, what a killed `replace_dir` has moved aside."""
    old = _old_dir(path)
    if old.exists() and not path.exists():
        os.replace(old, path)
    _remove_dir(old)


def _old_dir(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _remove_dir(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two directories in one operation, if system and file system can (Linux)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    names = (os.fsencode(first), os.fsencode(second))
    return bool(renameat2(at_fdcwd, names[0], at_fdcwd, names[1], rename_exchange) == 0)
