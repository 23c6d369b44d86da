"""Fetch complete shards from any store, with retries; what cannot be had is listed and skipped.

A shard is fetched into memory, checked against its manifest, and used or rejected as a whole, so
that a stream never holds a part of one.
"""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar

from delvm.errors import UserError
from delvm.progress import log
from delvm.storage import StoragePath

T = TypeVar("T")

FIRST_WAIT_S, MAX_WAIT_S = 0.5, 30.0  # between two attempts; it doubles with each
# Of a task, after which the store counts as lost.
MAX_SHARDS_IN_A_ROW, MAX_IMAGES_IN_A_ROW = 16, 1024


@dataclass(frozen=True)
class ShardCommand:
    """A shell command that writes a shard to its standard output; WebDataset's ``pipe:``.

    It can run anything: it must come from the user's own config, never from a file that was read.
    """

    command: str

    def __str__(self) -> str:
        return f"pipe:{self.command}"

    def read(self, timeout_s: float) -> bytes:
        """What the command writes.

        Raises:
            TimeoutError: It does not end in time; it is killed, with what it started.
            OSError: It fails.
        """
        process = subprocess.Popen(
            self.command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise _too_slow(self, timeout_s) from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        if process.returncode:
            reason = errors.decode(errors="replace").strip().rpartition("\n")[2]
            raise OSError(f"{self} ended with exit code {process.returncode}: {reason}")
        return output


ShardPath: TypeAlias = StoragePath | ShardCommand


@dataclass
class Rejects:
    """Lists what a stream leaves out of a task.

    Attributes:
        task: Name of the task.
        what: "shard" or "image".
        file: The list, one JSON object a line; None = none.
        max_in_a_row: Rejects after which the store counts as lost.
    """

    task: str
    what: str
    file: str | None
    max_in_a_row: int
    in_a_row: int = field(default=0, init=False)

    def add(self, path: object, error: UserError, epoch: int, attempts: int = 1) -> None:
        """Log and list a shard, or an image of it.

        Raises:
            UserError: Too many in a row.
        """
        count = f"{attempts} attempt{'s' if attempts > 1 else ''}"
        log(f"data: left out one {self.what} of '{self.task}' after {count}: {error}")
        if self.file is not None:
            line = {
                "task": self.task,
                self.what: str(path),
                "epoch": epoch,
                "attempts": attempts,
                "reason": str(error),
            }
            append_line(Path(self.file), json.dumps(line))
        self.in_a_row += 1
        if self.in_a_row == self.max_in_a_row:
            raise UserError(
                f"{self.in_a_row:,} {self.what}s of task '{self.task}' in a row could not be read, "
                f"the last one because {error}: make them readable and set resume=auto"
            )


@dataclass
class ShardFetcher:
    """Fetches the shards of one task.

    Attributes:
        rejects: Where those that failed are listed.
        retries: Attempts after the first one.
        timeout_s: Seconds that an attempt may take in a remote store.
    """

    rejects: Rejects
    retries: int
    timeout_s: float

    def __call__(self, path: ShardPath, decode: Callable[[bytes], T], epoch: int) -> T | None:
        """What ``decode`` makes of a shard; None if it was rejected.

        Args:
            path: Of the shard.
            decode: Raises UserError for contents that are damaged.
            epoch: For the list of rejects.

        Raises:
            UserError: So many shards in a row have failed that the store must be lost.
        """
        try:
            found = fetch(path, decode, self.retries, self.timeout_s)
        except FetchError as error:
            self.rejects.add(path, error, epoch, error.attempts)
            return None
        self.rejects.in_a_row = 0
        return found


class FetchError(UserError):
    """A shard that could not be fetched, or is damaged.

    Attributes:
        path: Of the shard.
        attempts: How many there were.
    """

    def __init__(self, reason: str, path: str = "", attempts: int = 1) -> None:
        super().__init__(reason)
        self.path, self.attempts = path, attempts


def fetch(path: ShardPath, decode: Callable[[bytes], T], retries: int, timeout_s: float) -> T:
    """What ``decode`` makes of a shard.

    Args:
        path: Of the shard.
        decode: Raises UserError for contents that are damaged, which are fetched again.
        retries: Attempts after the first one.
        timeout_s: Seconds that an attempt may take in a remote store.

    Raises:
        FetchError: Every attempt failed, or there is no such file; the reason of the last one.
    """
    for attempt in range(1, retries + 2):
        try:
            return decode(read_within(path, timeout_s))
        except FileNotFoundError:  # it will not be there a second later
            raise FetchError(f"shard not found: {path}", str(path), attempt) from None
        except (OSError, UserError) as error:
            if attempt > retries:
                reason = str(error) or type(error).__name__
                raise FetchError(reason, str(path), attempt) from None
        time.sleep(min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)))
    raise AssertionError("unreachable")


def read_within(path: ShardPath, timeout_s: float) -> bytes:
    """The contents of a file, if a remote store gives them in time.

    Raises:
        TimeoutError: It does not. Its thread ends when the store's own library gives up.
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        UserError: As OSError, of a library with errors of its own.
    """
    if isinstance(path, ShardCommand):
        return path.read(timeout_s)
    if isinstance(path, Path):
        return path.read_bytes()
    result: list[bytes | Exception] = []

    def read() -> None:
        try:
            result.append(path.read_bytes())
        except Exception as error:
            result.append(error)

    # Each library has timeouts of its own, or none. A daemon does not keep a process alive.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not result:
        raise _too_slow(path, timeout_s)
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


def _too_slow(path: ShardPath, timeout_s: float) -> TimeoutError:
    return TimeoutError(f"{path} took more than {timeout_s:g} s")


def read_ahead(source: Iterable[T]) -> Iterator[T]:
    """The same items; a thread computes the next one while one is in use, and never more."""
    items = iter(source)
    result: list[tuple[T | None, BaseException | None]] = []

    def compute() -> None:
        try:
            result.append((next(items), None))
        except BaseException as error:
            result.append((None, error))

    def start() -> threading.Thread:
        thread = threading.Thread(target=compute, daemon=True)
        thread.start()
        return thread

    thread = start()
    while True:
        thread.join()
        item, error = result.pop()
        if isinstance(error, StopIteration):
            return
        if error is not None:
            raise error
        assert item is not None
        thread = start()
        yield item


def append_line(path: Path, line: str) -> None:
    """Append a line in one write, since processes of several ranks share the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (line + "\n").encode())
    finally:
        os.close(file)
