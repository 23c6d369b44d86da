"""Freed memory is reused: measured in page faults, in separate processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import delvm

# Page faults of blocks of 64 MB that are freed and allocated again: the median of the last rounds,
# since before glibc 2.38 an aligned block fits only after several attempts.
PROBE = """
import resource, statistics
import torch
def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(16 << 20) for _ in range(BLOCKS)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(int(statistics.median([page_faults() for _ in range(24)][-8:])))
"""
KEEP = "from delvm.models.cpu.malloc import configure_malloc; kept = configure_malloc()\n"
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"


def run(script: str, *words: str, **env: str) -> list[str]:
    """Words that a Python script prints, with only the given settings of malloc."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, env=clean | env, capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.fixture(params=[1, 3])
def probe(request) -> str:
    """The script; skipped where there is nothing to gain."""
    script = PROBE.replace("BLOCKS", str(request.param))
    if int(run(script)[0]) < 1000:
        pytest.skip("few page faults here even without the settings")
    return script


@pytest.mark.slow
def test_freed_memory_is_reused(probe):
    assert int(run(KEEP + probe)[0]) < 100


@pytest.mark.slow
def test_settings_apply_to_child_processes(probe):
    assert int(run(KEEP + CHILD, probe)[0]) < 100


def test_existing_settings_are_kept():
    assert run(KEEP + "print(kept)", MALLOC_TRIM_THRESHOLD_="131072") == ["False"]
    tunable = "glibc.malloc.trim_threshold=131072"
    assert run(KEEP + "print(kept)", GLIBC_TUNABLES=tunable) == ["False"]
    assert run(KEEP + "print(kept)") == ["True"] or not sys.platform.startswith("linux")


def test_only_training_and_encoding_configure_malloc():
    package = Path(delvm.__file__).parent
    callers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "configure_malloc()" in path.read_text("utf-8") and path.name != "malloc.py"
    }
    assert callers == {"commands/train.py", "interop/tokenizer_factory.py"}
