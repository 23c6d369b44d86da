"""Freed memory is used again: counted in page faults, in processes of their own."""

import os
import subprocess
import sys

import pytest

# The faults of touching 64 MB that had been touched before, given back and asked for again. Until
# glibc 2.38 an aligned block finds its place again only after some calls.
PROBE = """
import resource
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(20)))
"""
KEEP = "from delvm.allocator import keep_freed; kept = keep_freed()\n"
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"


def said(script: str, *words: str, **env: str) -> list[str]:
    """Words that a Python script prints, with no setting of the allocator but these."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, env=clean | env, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(scope="module")
def without() -> int:
    """Faults where nothing is said to the allocator."""
    found = int(said(PROBE)[0])
    if found < 1000:
        pytest.skip("this C library, or its pages, fault little anyway")
    return found


def test_memory_is_used_again(without):
    assert int(said(KEEP + PROBE)[0]) < without / 100


def test_in_processes_that_are_started_too(without):
    assert int(said(KEEP + CHILD, PROBE)[0]) < without / 100


def test_what_the_environment_says_stays():
    assert said(KEEP + "print(kept)", MALLOC_TRIM_THRESHOLD_="131072") == ["False"]
    assert said(KEEP + "print(kept)") == ["True"] or not sys.platform.startswith("linux")
