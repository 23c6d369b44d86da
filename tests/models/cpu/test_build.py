"""C++ that is compiled at its first use."""

import os
import subprocess

import pytest

from delvm.models.cpu import attention as blockwise
from delvm.models.cpu import build as native
from delvm.models.precision import has_native_bf16


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file of one function, and a cache of its own."""
    monkeypatch.setenv("DELVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    path = tmp_path / "twice.cpp"
    path.write_text('extern "C" int twice(int x) { return 2 * x; }\n')
    return path


def test_it_is_compiled_once_and_again_when_it_changes(source, tmp_path, monkeypatch):
    assert native.library(source).twice(4) == 8
    (made,) = (tmp_path / "cache" / "native").iterdir()
    assert made.name.startswith("twice-") and made.suffix == ".so"
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
        assert native.library(source).twice(5) == 10
    source.write_text(source.read_text().replace("2 * x", "3 * x"))
    assert native.library(source).twice(4) == 12


def test_a_fault_of_the_compiler_is_one_line_and_leaves_nothing(source, tmp_path):
    source.write_text("int broken( {\n")
    with pytest.raises(OSError, match=r"cannot compile twice.cpp: .*twice.cpp:1:.*error") as told:
        native.library(source)
    assert "\n" not in str(told.value)
    assert list((tmp_path / "cache" / "native").iterdir()) == []


def test_a_library_of_another_user_is_not_loaded(source, monkeypatch):
    native.library(source)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(OSError, match="belongs to another user: set DELVM_CACHE"):
        native.library(source)


@pytest.mark.skipif(not has_native_bf16("cpu"), reason="this processor has no bfloat16")
def test_without_a_compiler_torchs_attention_is_taken(source, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    blockwise._tried.cache_clear()
    blockwise._library.cache_clear()
    try:
        assert not blockwise.works()
        assert "no-such-compiler" in capsys.readouterr().err
    finally:
        blockwise._tried.cache_clear()
        blockwise._library.cache_clear()
