"""Freed memory is used again: counted in page faults, in processes of their own."""

import os
import subprocess
import sys

import pytest

# The faults of touching blocks of 64 MB again, given back together and asked for again: the median
# of the last times, since an aligned block finds its place only after some tries before glibc 2.38.
PROBE = """
import resource, statistics
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(16 << 20) for _ in range(BLOCKS)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(int(statistics.median([faults() for _ in range(24)][-8:])))
"""
KEEP = "from delvm.models.cpu.malloc import configure_malloc; kept = configure_malloc()\n"
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"


def said(script: str, *words: str, **env: str) -> list[str]:
    """Words that a Python script prints, with no setting of the allocator but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, env=clean | env, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(params=[1, 3])
def probe(request) -> str:
    """The script; it is skipped where nothing is to be gained."""
    script = PROBE.replace("BLOCKS", str(request.param))
    if int(said(script)[0]) < 1000:
        pytest.skip("this C library, or its pages, fault little anyway")
    return script


def test_memory_is_used_again(probe):
    assert int(said(KEEP + probe)[0]) < 100


def test_in_processes_that_are_started_too(probe):
    assert int(said(KEEP + CHILD, probe)[0]) < 100


def test_what_the_environment_says_stays():
    assert said(KEEP + "print(kept)", MALLOC_TRIM_THRESHOLD_="131072") == ["False"]
    tunable = "glibc.malloc.trim_threshold=131072"
    assert said(KEEP + "print(kept)", GLIBC_TUNABLES=tunable) == ["False"]
    assert said(KEEP + "print(kept)") == ["True"] or not sys.platform.startswith("linux")
