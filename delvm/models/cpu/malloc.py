"""The C library's memory allocator, told to keep what a processor's tensors give back.

glibc returns freed memory to the system: large blocks at once, and the free end of its heap soon.
Each step of a network then gets the same memory anew, one page fault every 4 KiB, which takes up to
a third of the time of encoding or training on a processor.
"""

import ctypes
import os

# The variable that says it to a process that starts, mallopt's number for the same, the value.
_OPTIONS = (
    ("MALLOC_MMAP_MAX_", -4, 0),  # no block is mapped by itself
    ("MALLOC_TRIM_THRESHOLD_", -1, -1),  # the heap is never trimmed
)


def configure_malloc() -> bool:
    """Keep what the main thread frees in this process and those that it starts, for later tensors.

    Does nothing where the environment already says something of this, or where the C library has
    no ``mallopt``. A process then never shrinks; before glibc 2.38, which finds the place of an
    aligned block only after some tries, it may grow to more than it needs.

    Returns:
        Whether it was done.
    """
    said = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if said or any(name in os.environ for name, _, _ in _OPTIONS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    for name, number, value in _OPTIONS:
        if not mallopt(number, value):
            return False
        os.environ[name] = str(value)
    return True
