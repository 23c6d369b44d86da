"""Compile C++ of this package at its first use, on the machine that runs it."""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from delvm.progress import log
from delvm.storage import atomic_path, cache_dir

COMPILERS = ("g++", "c++", "clang++")
# All CPUs with native bfloat16 have these instructions, so machines of several kinds can share
# a cache directory and its one library.
FLAGS = "-O3 -std=c++20 -march=x86-64-v4 -mprefer-vector-width=512 -fopenmp -shared -fPIC"


def build_extension(source: Path, *flags: str) -> ctypes.CDLL:
    """Compile a C++ file, which may call torch's libraries, and load it.

    Compilation takes a few seconds and happens once: the library is cached in
    `delvm.storage.cache_dir`. The compiler is ``$CXX``, by default the first of g++, c++ and
    clang++ on the path.

    Args:
        source: the file.
        flags: of the compiler, in addition to those of all files.

    Raises:
        OSError: there is no compiler, or it failed; the library cannot be written or loaded; or it
            belongs to another user.
    """
    torch_dir = Path(torch.__file__).parent
    compiler = shlex.split(os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), "g++"))
    headers = [path.read_bytes() for path in sorted(source.parent.glob("*.h"))]
    inputs = (source.read_bytes(), headers, torch.__version__, torch_dir, compiler, FLAGS, flags)
    digest = hashlib.sha256(repr(inputs).encode()).hexdigest()[:30]
    library = cache_dir() / "native" / f"{source.stem}-{digest}.so"
    if not library.exists():
        with atomic_path(library) as tmp:
            files: tuple[str | Path, ...] = ("-o", tmp, source, "-isystem", torch_dir / "include")
            libraries = ("-L", torch_dir / "lib", "-ltorch_cpu", "-lc10")
            command = (*compiler, *FLAGS.split(), *flags, *files, *libraries)
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                errors = [line for line in done.stderr.splitlines() if "error" in line]
                reason = errors[0] if errors else f"exit code {done.returncode}"
                raise OSError(f"{' '.join(compiler)} cannot compile {source.name}: {reason}")
    # In a directory that several people can write to, anyone could place code under this name.
    if library.stat().st_uid != os.getuid():
        raise OSError(
            f"{library} belongs to another user: set DELVM_CACHE to a directory of your own"
        )
    return ctypes.CDLL(str(library))


def kernel_works(call: Callable[[], object], fallback: str) -> bool:
    """Whether a first call of a kernel succeeds; if not, log why, and what is used instead."""
    try:
        call()
    except (OSError, RuntimeError) as error:
        log(f"falling back to {fallback}: {error}")
        return False
    return True
