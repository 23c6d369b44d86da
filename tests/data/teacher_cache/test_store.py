"""Files of distributions that are not trusted, not finished, or of another plan."""

import json
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from delvm.data.teacher_cache.record import quantize
from delvm.data.teacher_cache.store import (
    MANIFEST,
    CachePlan,
    TeacherCache,
    missing_files,
    write_file,
)
from delvm.errors import UserError

PLAN = CachePlan(
    teacher="a" * 16, precision="fp32", tokenizer="f" * 16, vocab_size=20, top_k=3,
    sentence_length=9, num_sentences=10, sentences_per_file=4, order={"seed": 0},
)  # fmt: skip


def records(plan: CachePlan, file: int) -> np.ndarray:
    """Random distributions, the same in each call."""
    rng = np.random.default_rng(file)
    found = np.empty(len(plan.sentences(file)), plan.dtype)
    probs = rng.dirichlet(np.ones(plan.vocab_size), found["tail"].shape)
    order = np.argsort(-probs, axis=-1)[..., : plan.top_k]
    top = np.take_along_axis(probs, order, -1)
    rest = 1 - top.sum(-1, keepdims=True)
    found["ids"] = order
    found["codes"], found["tail"] = quantize(np.log(np.concatenate((top, rest), -1)))
    found["checksum"] = list(plan.sentences(file))
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    PLAN.save(tmp_path)
    for file in range(3):
        write_file(tmp_path, PLAN, file, records(PLAN, file))
    return tmp_path


def test_round_trip_in_any_order_and_through_pickle(folder):
    for cache in (TeacherCache(str(folder)), pickle.loads(pickle.dumps(TeacherCache(str(folder))))):
        assert cache.plan == PLAN
        checksum, ids, log_probs = cache.read(np.array([9, 0, 5]))
        assert checksum.tolist() == [9, 0, 5]
        assert (ids[2] == records(PLAN, 1)["ids"][1]).all() and ids.shape == (3, 8, 3)
        assert log_probs.shape == (3, 8, 4)
        assert np.exp(log_probs).sum(-1) == pytest.approx(1, abs=1e-6)


def test_same_records_give_the_same_bytes(folder, tmp_path):
    name = folder / PLAN.files[1]
    before = name.read_bytes()
    write_file(folder, PLAN, 1, records(PLAN, 1))
    assert name.read_bytes() == before
    assert not [*folder.glob(".*")]


def test_unfinished_cache_names_what_is_missing(folder):
    (folder / PLAN.files[1]).unlink()
    assert missing_files(folder, PLAN) == [1]
    with pytest.raises(UserError, match="is not finished, 1 of 3 files are missing: run the same"):
        TeacherCache(str(folder))


def test_no_cache_names_the_command(tmp_path):
    with pytest.raises(UserError, match=r"holds no distributions .* run `delvm encode teacher="):
        TeacherCache(str(tmp_path / "nowhere"))


def test_files_of_another_plan_are_not_taken_for_those_of_this(folder):
    other = replace(PLAN, teacher="b" * 16)
    assert missing_files(folder, other) == [0, 1, 2]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vocab_size", 1 << 20, "vocab_size 1048576 is not from 2 to 65536"),
        ("top_k", 20, "top_k 20 is not from 1 to 19"),
        ("sentence_length", 1 << 40, "sentence_length .* is not from 2"),
        ("num_sentences", -1, "num_sentences -1 is not from 1"),
        ("order", [], "order is .*not an object"),
        ("format", "x", "format 'x' is not 'delvm-teacher-cache-1'"),
        ("more", 1, "unknown keys 'more'"),
    ],
)
def test_damaged_manifest_is_refused(folder, key, value, message):
    values = {"format": "delvm-teacher-cache-1"} | asdict(PLAN) | {key: value}
    (folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        TeacherCache(str(folder))


@pytest.mark.parametrize("damage", ["pickle", "truncated", "empty", "other_form", "short", "id"])
def test_damaged_file_is_refused_in_one_line(folder, damage):
    name, found = folder / PLAN.files[0], records(PLAN, 0)
    if damage == "pickle":
        np.save(name, np.array([print, {}], dtype=object), allow_pickle=True)
    elif damage == "truncated":
        name.write_bytes(name.read_bytes()[:-5])
    elif damage == "empty":
        name.write_bytes(b"")
    elif damage == "other_form":
        np.save(name, np.zeros(4))
    elif damage == "short":
        np.save(name, found[:2])
    else:
        found["ids"][1, 2, 0] = PLAN.vocab_size
        np.save(name, found)
    with pytest.raises(UserError, match="is damaged") as error:
        TeacherCache(str(folder)).read(np.array([1]))
    assert "\n" not in str(error.value)
