"""The directory of uploaded files and answers: how full it is, and what is removed from it."""

import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from delvm.errors import UserError
from delvm.serving.limits import MIB, Limits

KEPT_SECONDS = 3600  # Gradio deletes files of this age, and looks for them
SWEEP_SECONDS = 600  # this often
_EMPTY_SECONDS = 60  # a folder that has been empty for this long is not about to be written to


class Cache:
    """A directory that Gradio writes to, and deletes old files of.

    Attributes:
        folder: the directory.
        prompts: in it, the ready prompts, which stay and do not count.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.prompts = folder, folder / "prompts"
        self._max_mb = limits.max_cache_mb

    def sweep(self) -> int:
        """Remove what Gradio leaves behind, and return the bytes of the rest.

        That is empty folders, and files that it does not know, such as those of a client that left.
        """
        total, now = 0, time.time()
        for folder, _, names in os.walk(self.folder, topdown=False):
            if Path(folder).is_relative_to(self.prompts):
                continue
            total += sum(_kept_bytes(os.path.join(folder, name), now) for name in names)
            with suppress(OSError):  # not empty, or removed in between
                is_old = now - os.stat(folder).st_mtime > _EMPTY_SECONDS
                if is_old and not names and folder != str(self.folder):
                    os.rmdir(folder)
        return total

    def check(self) -> None:
        """Raise a UserError if the rest exceeds `Limits.max_cache_mb`."""
        if self.sweep() > self._max_mb * MIB:
            raise UserError(
                f"the {self._max_mb} MiB for uploads and answers are used up: try again in an hour"
            )


def _kept_bytes(file: str, now: float) -> int:
    """The size of a file; 0 if it is removed, or another one has removed it."""
    try:
        found = os.lstat(file)
        if now - found.st_mtime <= 2 * KEPT_SECONDS or not stat.S_ISREG(found.st_mode):
            return found.st_size
        os.unlink(file)
    except FileNotFoundError:
        pass
    return 0
