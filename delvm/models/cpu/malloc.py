"""Configure glibc malloc to keep freed memory, which avoids page faults in CPU work.

By default glibc returns freed memory to the system: large blocks at once, and the free end of its
heap early. Each step of a network then gets the same memory again at one page fault per 4 KiB,
which takes up to a third of the time of encoding or training on CPU.
"""

import ctypes
import os

# Environment variable (read when a process starts), the same option of mallopt, value.
_OPTIONS = (
    ("MALLOC_MMAP_MAX_", -4, 0),  # allocate no block with mmap
    ("MALLOC_TRIM_THRESHOLD_", -1, -1),  # never trim the heap
)


def configure_malloc() -> bool:
    """Keep memory that is freed in this process, and in processes it starts, for later tensors.

    Does nothing where the environment already sets one of these options, or where the C library
    has no ``mallopt``. The process then never shrinks. Before glibc 2.38, which finds room for an
    aligned block only after several attempts, it may also grow beyond what it needs.

    Returns:
        Whether the options were set.
    """
    tunables = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tunables or any(name in os.environ for name, _, _ in _OPTIONS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    for name, option, value in _OPTIONS:
        if not mallopt(option, value):
            return False
        os.environ[name] = str(value)
    return True
