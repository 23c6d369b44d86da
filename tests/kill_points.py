"""Kill a job before each of its changes to the disk, in a process of its own."""

import os
import sys
import traceback
from collections.abc import Callable, Iterator

_WRITES = os.O_WRONLY | os.O_RDWR
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
KILLED, FINISHED = 9, 0


def kill_points(job: Callable[[], object], prepare: Callable[[], object]) -> Iterator[int]:
    """Run a job again and again, killed before its first, second, ... change to the disk.

    Args:
        job: What is killed.
        prepare: Called before each time, to make the disk what it was.

    Yields:
        The number of the change before which it was killed.
    """
    number = 0
    while True:
        prepare()
        pid = os.fork()
        if not pid:
            _run(job, number)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == FINISHED:
            return
        assert code == KILLED, f"exit code {code} when killed at {number}"
        yield number
        number += 1


def _run(job: Callable[[], object], number: int) -> None:
    seen = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open":
            if not (isinstance(args[2], int) and args[2] & _WRITES and args[0] != "/dev/null"):
                return
        elif event not in _CHANGES:
            return
        if seen == number:
            os._exit(KILLED)
        seen += 1

    try:
        sys.addaudithook(hook)
        job()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(FINISHED)
