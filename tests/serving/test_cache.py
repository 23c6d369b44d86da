"""The directory of uploaded files and answers: what counts, and what is removed."""

import os
import time

import pytest

from delvm.errors import UserError
from delvm.serving.cache import KEPT_SECONDS, Cache
from delvm.serving.limits import MIB, Limits


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path, Limits(max_cache_mb=1))


def write(file, size, age=0.0):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(size))
    made_older(file, age)


def made_older(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def test_files_count_and_ready_prompts_do_not(cache, tmp_path):
    write(cache.prompts / "pose/1_img.png", 2 * MIB, age=10 * KEPT_SECONDS)
    write(tmp_path / "a/b.png", MIB)
    cache.check()
    write(tmp_path / "answer-1/2.png", 1)
    assert cache.sweep() == MIB + 1
    with pytest.raises(UserError, match="the 1 MiB for uploads and answers are used up: try again"):
        cache.check()
    assert (cache.prompts / "pose/1_img.png").exists()


def test_empty_folders_are_removed_once_nobody_is_about_to_write_to_them(cache, tmp_path):
    for name in ("old/inner", "new", "used"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "used/a.png", 1)
    for name in ("old/inner", "old", "used", "."):
        made_older(tmp_path / name, 1000)
    cache.sweep()
    made_older(tmp_path / "old", 1000)
    cache.sweep()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new", "used"]


def test_the_directory_itself_stays(cache, tmp_path):
    made_older(tmp_path, 1000)
    cache.check()
    assert tmp_path.is_dir()


def test_files_that_gradio_does_not_know_are_removed(cache, tmp_path):
    write(tmp_path / "answer-1/1.png", 2 * MIB, age=3 * KEPT_SECONDS)
    write(tmp_path / "answer-1/2.png", 1, age=KEPT_SECONDS)
    assert cache.sweep() == 1
    assert [each.name for each in (tmp_path / "answer-1").iterdir()] == ["2.png"]
