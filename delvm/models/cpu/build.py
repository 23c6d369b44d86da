"""C++ of this package, compiled on the machine that runs it, at first use."""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import torch

from delvm.storage import atomic_path, cache_dir

COMPILERS = ("g++", "c++", "clang++")
# The processors that multiply in bfloat16 all know these instructions, so that a folder shared by
# several kinds of machines holds one library for all.
FLAGS = "-O3 -std=c++20 -march=x86-64-v4 -mprefer-vector-width=512 -fopenmp -shared -fPIC"


def library(source: Path) -> ctypes.CDLL:
    """A C++ file as a loaded library that may call torch's; compiled once, in a few seconds.

    The compiler is ``$CXX``, by default the first of g++, c++ and clang++ that is there; what it
    made stays in `delvm.storage.cache_dir`.

    Raises:
        OSError: there is no compiler, it failed, or the library cannot be loaded or written; or
            another user has put it there.
    """
    torchs = Path(torch.__file__).parent
    compiler = shlex.split(os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), "g++"))
    parts = (source.read_bytes(), torch.__version__, torchs, compiler, FLAGS)
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:30]
    made = cache_dir() / "native" / f"{source.stem}-{digest}.so"
    if not made.exists():
        with atomic_path(made) as part:
            files: tuple[str | Path, ...] = ("-o", part, source, "-isystem", torchs / "include")
            linked = ("-L", torchs / "lib", "-ltorch_cpu", "-lc10")
            command = (*compiler, *FLAGS.split(), *files, *linked)
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                faults = [line for line in done.stderr.splitlines() if "error" in line]
                reason = faults[0] if faults else f"exit code {done.returncode}"
                raise OSError(f"{' '.join(compiler)} cannot compile {source.name}: {reason}")
    # A folder that several people write to could hold anybody's code under this name.
    if made.stat().st_uid != os.getuid():
        raise OSError(f"{made} belongs to another user: set DELVM_CACHE to a folder of your own")
    return ctypes.CDLL(str(made))
