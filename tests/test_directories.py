"""`delvm.directories` with several writers; killed ones are in `tests.data.shards.test_killed`."""

import os

from delvm.directories import atomic_dir
from tests.data.corpus_makers import contents


def test_two_writers_at_once_have_a_directory_each(tmp_path):
    path = tmp_path / "model"
    with atomic_dir(path) as first:
        (first / "a").write_text("first")
        with atomic_dir(path) as second:
            (second / "a").write_text("second")
            (second / "b").write_text("second")
        assert contents(tmp_path / "model") == {"a": b"second", "b": b"second"}
        (first / "b").write_text("first")
    assert contents(tmp_path) == {"model/a": b"first", "model/b": b"first"}


def test_two_processes_at_once_have_a_directory_each(tmp_path):
    path = tmp_path / "model"
    ready, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            with atomic_dir(path) as tmp:
                (tmp / "a").write_text("child")
                os.write(ready[1], b"1")
                os.read(go_on[0], 1)
                (tmp / "b").write_text("child")
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.read(ready[0], 1)
    with atomic_dir(path) as tmp:
        (tmp / "a").write_text("parent")
    assert contents(path) == {"a": b"parent"}
    os.write(go_on[1], b"1")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert contents(tmp_path) == {"model/a": b"child", "model/b": b"child"}


def test_link_to_a_directory_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/old").write_text("old")
    (tmp_path / "model").symlink_to("disk")
    with atomic_dir(tmp_path / "model") as tmp:
        (tmp / "new").write_text("new")
    assert (tmp_path / "model").is_symlink()
    assert contents(tmp_path / "disk") == {"new": b"new"}
