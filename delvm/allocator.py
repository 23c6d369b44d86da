"""The C library's memory allocator, told to keep what a processor's tensors give back.

glibc returns freed memory to the system: large blocks at once, and the free end of its heap soon.
Each step of a network then gets the same memory anew, one page fault every 4 KiB, which takes up to
a third of the time of encoding or training on a processor.
"""

import ctypes
import os

# The variable that says it to a process that starts, mallopt's number for the same, the value.
_OPTIONS = (
    ("MALLOC_MMAP_MAX_", -4, 0),
    ("MALLOC_TRIM_THRESHOLD_", -1, 2**31 - 1),
)


def keep_freed() -> bool:
    """Keep freed memory in this process and in those that it starts, for the next tensor.

    Does nothing where the environment already says one of the two, or the C library has no
    ``mallopt``. A process holds on to the most that it has needed so far.

    Returns:
        Whether it was done.
    """
    if any(name in os.environ for name, _, _ in _OPTIONS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    for name, number, value in _OPTIONS:
        mallopt(number, value)
        os.environ[name] = str(value)
    return True
