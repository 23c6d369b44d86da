"""Token files of InternLM and LVM, compared with a plain reading of them."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from delvm.errors import UserError
from delvm.interop.token_files import read_internlm, read_lvm, write_internlm, write_lvm
from delvm.models.token_space import TokenSpace

GOLDEN = Path(__file__).parents[1] / "data/golden/token_files"
BIN, JSONL = GOLDEN / "derain/train.bin", GOLDEN / "dataset.jsonl"
SPACE = TokenSpace()


def test_read_golden_files():
    lines = BIN.read_text().splitlines()
    found = list(read_internlm(BIN, SPACE))
    assert len(found) == len(lines) == 24
    for ids, line in zip(found, lines, strict=True):
        assert ids.dtype == np.int64 and ids.tolist() == json.loads(line)["tokens"]
    lines = JSONL.read_text().splitlines()
    found = list(read_lvm(JSONL, SPACE))
    assert len(found) == len(lines) and found[0].shape == (4096,)
    for ids, line in zip(found, lines, strict=True):
        raw = base64.b64decode(json.loads(line)["tokens"])
        assert ids.tolist() == np.frombuffer(raw, np.int32).tolist()


def test_write_is_byte_identical(tmp_path):
    assert write_internlm(tmp_path / "a.bin", read_internlm(BIN, SPACE), SPACE) == 24
    assert (tmp_path / "a.bin").read_bytes() == BIN.read_bytes()
    expected = np.load(BIN.with_name("train.bin.meta"))
    with (tmp_path / "a.bin.meta").open("rb") as file:
        assert np.array_equal(np.load(file), expected)
    write_lvm(tmp_path / "b.jsonl", read_lvm(JSONL, SPACE), SPACE)
    assert (tmp_path / "b.jsonl").read_bytes() == JSONL.read_bytes()


@pytest.mark.parametrize(
    ("write", "read"), [(write_internlm, read_internlm), (write_lvm, read_lvm)]
)
def test_special_tokens_are_added_and_stripped(tmp_path, write, read):
    lvm = TokenSpace(8192, bos=8192, eos=8193)
    ids = np.array([5, 0, 8191])
    write(tmp_path / "x", [ids], lvm)
    assert [each.tolist() for each in read(tmp_path / "x", lvm)] == [[5, 0, 8191]]
    larger = TokenSpace(9000)
    assert [each.tolist() for each in read(tmp_path / "x", larger)] == [[8192, 5, 0, 8191, 8193]]
    with pytest.raises(UserError, match=r"z line 2: id 8193 is outside \[0, 8192\): set codebook"):
        write(tmp_path / "z", [ids, np.array([8193])], lvm)  # would be read as eos
    assert not (tmp_path / "z").exists()
    write(tmp_path / "y", [ids], SPACE)
    with pytest.raises(UserError, match="line 1: expected bos=8192, found 5"):
        list(read(tmp_path / "y", lvm))
    with pytest.raises(UserError, match=r"line 1: id 8193 is outside \[0, 8192\)"):
        list(read(tmp_path / "x", SPACE))
    with pytest.raises(UserError, match="bos=3 is an image token"):
        TokenSpace(8192, bos=3)


GOOD = b'{"tokens": [1, 2]}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b"{nonsense\n", "line 2: "),
        (GOOD + b"[1, 2]\n", 'line 2: not an object with "tokens"'),
        (GOOD + b'{"tokens": [1, "2"]}\n', "line 2: tokens are not a list of integers"),
        (GOOD + b'{"tokens": [1, 2.0]}\n', "line 2: tokens are not a list of integers"),
        (GOOD + b'{"tokens": [true]}\n', "line 2: tokens are not a list of integers"),
        (GOOD + b'{"tokens": [-1]}\n', r"line 2: an id is outside \[0, 2\^31\)"),
        (GOOD + b'{"tokens": [8192]}\n', r"line 2: id 8192 is outside \[0, 8192\)"),
        (GOOD + b'{"tokens": [1, ', "line 2: the file is truncated"),
        (GOOD + b"[" * 100_000 + b"\n", "line 2: "),
    ],
)
def test_first_bad_line_of_internlm_is_reported(tmp_path, content, message):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_internlm(tmp_path / "x.bin", SPACE))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ('"AA*="', "line 1: tokens are not base64"),
        ('"AAAA"', "line 1: tokens of 3 bytes are not int32"),
        ("[1, 2]", "line 1: tokens are not base64"),
        ('"/////w=="', r"line 1: id -1 is outside"),
    ],
)
def test_bad_line_of_lvm_is_reported(tmp_path, tokens, message):
    (tmp_path / "x.jsonl").write_text(f'{{"tokens": {tokens}}}\n')
    with pytest.raises(UserError, match=message):
        list(read_lvm(tmp_path / "x.jsonl", SPACE))


def test_wrong_meta_is_refused_missing_meta_is_fine(tmp_path):
    path, meta = tmp_path / "x.bin", tmp_path / "x.bin.meta"
    write_internlm(path, [np.array([1, 2]), np.array([3])], SPACE)
    for rows, message in (
        ([[0, 2], [19, 2]], r"line 2: offset and tokens \(19, 1\) != \(19, 2\) \(x.bin.meta\)"),
        ([[0, 2]], r"line 2: .* != None \(x.bin.meta\)"),
        ([[0, 2], [19, 1], [34, 1]], "has 2 lines, x.bin.meta has 3"),
        ([0, 2], r"holds int64 \(2,\)"),
    ):
        with meta.open("wb") as file:
            np.save(file, np.array(rows))
        with pytest.raises(UserError, match=message):
            list(read_internlm(path, SPACE))
    meta.write_bytes(b"nothing")
    with pytest.raises(UserError, match="x.bin.meta cannot be read"):
        list(read_internlm(path, SPACE))
    meta.unlink()
    assert [ids.tolist() for ids in read_internlm(path, SPACE)] == [[1, 2], [3]]


@pytest.mark.parametrize(("file", "read"), [(BIN, read_internlm), (JSONL, read_lvm)])
def test_last_line_may_lack_its_newline(file, read, tmp_path):
    path, data = tmp_path / file.name, file.read_bytes()
    path.write_bytes(data.rstrip(b"\n"))
    assert [*map(list, read(path, SPACE))] == [*map(list, read(file, SPACE))]
    path.write_bytes(data[:-3])
    with pytest.raises(UserError, match=r"line \d+: the file is truncated"):
        list(read(path, SPACE))


def test_empty_lines_of_lvm_are_skipped(tmp_path):
    first, second, *_ = JSONL.read_bytes().splitlines(keepends=True)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n" + first + b" \r\n\n" + second + b"\n")
    assert len(list(read_lvm(path, SPACE))) == 2
    path.write_bytes(first + b"\n{}\n")
    with pytest.raises(UserError, match='line 3: not an object with "tokens"'):
        list(read_lvm(path, SPACE))


def test_failed_write_leaves_no_file(tmp_path):
    def broken():
        yield np.array([1])
        raise KeyboardInterrupt

    for write in (write_internlm, write_lvm):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "x.bin", broken(), SPACE)
    assert list(tmp_path.iterdir()) == []
