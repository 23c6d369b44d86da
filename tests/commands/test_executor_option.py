"""`delvm encode executor=...` from the command line."""

import numpy as np
import pytest

from delvm.data.types import Example
from delvm.errors import UserError
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_tokenizer
from delvm.interop.tokenizer_factory import LoadTokenizer
from tests.data.corpus_makers import contents
from tests.data.shard_makers import write_examples


@pytest.fixture
def words(tmp_path, weights, monkeypatch, root):
    """Arguments of encode for two tasks of 16 px."""
    monkeypatch.setenv("PYTHONPATH", str(root))
    rng = np.random.default_rng(0)
    for task in ("derain", "pose"):
        drawn = rng.integers(0, 256, (6, 2, 16, 16, 3), dtype=np.uint8)
        made = [Example(f"{i}", task, tuple(both)) for i, both in enumerate(drawn)]
        write_examples(tmp_path / "pairs", "test", task, made, source="s", seed=0, image_size=16)
    return ["encode", "input_dir=pairs", "splits=[test]", f"tokenizer={weights / 'tokenizer'}"]


@pytest.mark.slow
def test_processes_write_what_one_process_writes(delvm, words, tmp_path):
    assert delvm(*words, "output_dir=a")[0] == 0
    code, out, err = delvm(*words, "output_dir=b", "executor=processes", "executor.workers=1")
    assert (code, out.splitlines()[0]) == (0, "test: derain 6, pose 6 pairs")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert "encode: test/pose/000000.tar: 6 examples in" in err and "12/12 examples" in err


@pytest.mark.slow
def test_a_damaged_shard_is_one_line_and_code_2(delvm, words, tmp_path):
    (tmp_path / "pairs/test/pose/000000.tar").write_bytes(b"x" * 700)
    code, out, err = delvm(*words, "output_dir=b", "executor=processes", "executor.workers=1")
    lines = [line for line in err.splitlines() if line.startswith("delvm: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err
    assert "pairs/test/pose/000000.tar is damaged" in lines[0] and "delete it" in lines[0]
    assert (tmp_path / "b/test/derain/manifest.json").exists()  # what was done stays


@pytest.mark.slow
def test_settings_of_executors_are_checked(delvm, words):
    code, _, err = delvm(*words, "executor=processes", "executor.workers=-1")
    assert code == 2 and "executor.workers=-1 is below 0: set it to 0 or more" in err
    code, _, err = delvm(*words, "executor=submitit", "executor.cpus_per_worker=0")
    assert code == 2 and "executor.cpus_per_worker=0 is below 1" in err
    code, _, err = delvm(*words, "executor=procesess")
    assert code == 2 and "did you mean 'processes'?" in err
    code, _, err = delvm(*words, "executor=ray", "executor.log_dir=x")
    assert code == 2 and "unknown key 'executor.log_dir'" in err


def test_a_worker_refuses_another_tokenizer(weights):
    path = str(weights / "tokenizer")
    mark = fingerprint(load_tokenizer(path))
    assert LoadTokenizer(path, "cpu", False, mark)(3).bf16 is False
    with pytest.raises(UserError, match=rf"is {mark} here, but the job was planned with abc: set"):
        LoadTokenizer(path, "cpu", False, "abc")(0)
