"""Building the C++ extension at its first use."""

import os
import subprocess

import pytest

from delvm.models.cpu import attention
from delvm.models.cpu.build import build_extension
from delvm.models.precision import has_native_bf16


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A C++ file with one function, and an empty cache directory."""
    monkeypatch.setenv("DELVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    path = tmp_path / "twice.cpp"
    path.write_text('extern "C" int twice(int x) { return 2 * x; }\n')
    return path


def test_extension_is_compiled_once_per_source(source, tmp_path, monkeypatch):
    assert build_extension(source).twice(4) == 8
    (library,) = (tmp_path / "cache" / "native").iterdir()
    assert library.name.startswith("twice-") and library.suffix == ".so"
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
        assert build_extension(source).twice(5) == 10
    source.write_text(source.read_text().replace("2 * x", "3 * x"))
    assert build_extension(source).twice(4) == 12


def test_compiler_error_is_one_line_and_leaves_no_file(source, tmp_path):
    source.write_text("int broken( {\n")
    with pytest.raises(OSError, match=r"cannot compile twice.cpp: .*twice.cpp:1:.*error") as error:
        build_extension(source)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache" / "native").iterdir()) == []


def test_library_of_another_user_is_refused(source, monkeypatch):
    build_extension(source)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(OSError, match="belongs to another user: set DELVM_CACHE"):
        build_extension(source)


@pytest.mark.skipif(not has_native_bf16("cpu"), reason="this CPU has no native bfloat16")
def test_missing_compiler_falls_back_to_sdpa(source, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    attention._probe.cache_clear()
    attention._library.cache_clear()
    try:
        assert not attention.cpu_flash_available()
        assert "no-such-compiler" in capsys.readouterr().err
    finally:
        attention._probe.cache_clear()
        attention._library.cache_clear()
