"""Hostile and damaged tars: everything read from a shard is checked, whoever wrote it."""

import io
import tarfile

import numpy as np
import pytest

from delvm.data.shards.reader import read_examples, read_tokens
from delvm.errors import UserError
from tests.data.shard_makers import (
    SETTINGS,
    make_pairs,
    rewrite_tar,
    token_plan,
    write,
    write_examples,
    write_ids,
)


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def huge_header():
    """The header of a terabyte array, without its data."""
    buffer = io.BytesIO()
    header = {"descr": "<u2", "fortran_order": False, "shape": (1 << 36, 2, 4)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


GOOD = np.zeros((3, 2, 4), np.uint16)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("0.ids.npy", npy(GOOD.astype(np.int64)))], r"0\.ids\.npy: int64 is not uint16"),
        ([("0.ids.npy", npy(GOOD[:, :1]))], r"shape \(3, 1, 4\)"),
        ([("0.ids.npy", npy(GOOD + np.uint16(100)))], "id 100 is outside"),
        ([("0.ids.npy", npy(np.array([{}]), allow_pickle=True))], "cannot be read.*pickle"),
        ([("0.ids.npy", npy(GOOD)[:-4])], "cannot be read"),
        ([("0.ids.npy", b"")], "cannot be read"),
        ([("0.ids.npy", huge_header())], "cannot be read"),
        ([("0.ids.npy", npy(GOOD[:2]))], "holds 2 examples, its manifest lists 3"),
        ([("../../0.ids.npy", npy(GOOD))], r"unexpected member '../../0\.ids\.npy'"),
        ([("0.ids.txt", npy(GOOD))], r"0 holds \['ids.txt'\], not \['ids.npy'\]"),
        ([], "holds 0 examples"),
    ],
)
def test_invalid_token_tars_are_refused(tmp_path, members, message):
    write_ids(tmp_path, token_plan(3))
    rewrite_tar(tmp_path / "train/derain/000000.tar", members)
    with pytest.raises(UserError, match=message) as caught:
        list(read_tokens(tmp_path, "train", "derain"))
    assert "000000.tar" in str(caught.value)


def test_links_in_a_tar_are_refused(tmp_path):
    write_ids(tmp_path, token_plan(3))
    with tarfile.open(tmp_path / "train/derain/000000.tar", "w") as tar:
        info = tarfile.TarInfo("0.ids.npy")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(UserError, match="unexpected member"):
        list(read_tokens(tmp_path, "train", "derain"))


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_endless_headers_are_refused(tmp_path, kind):
    """Each extends the header after it; tarfile calls itself for each."""
    write_ids(tmp_path, token_plan(3))
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 12
    header = info.tobuf(tarfile.GNU_FORMAT) + b"12 path=abc\n".ljust(512, b"\0")
    (tmp_path / "train/derain/000000.tar").write_bytes(3000 * header)
    with pytest.raises(UserError, match="damaged .too many headers in a row") as caught:
        list(read_tokens(tmp_path, "train", "derain"))
    assert "\n" not in str(caught.value)


def test_truncated_tars_are_refused_at_any_length(tmp_path):
    write(tmp_path, count=2)
    path = tmp_path / "train/derain/000000.tar"
    full = path.read_bytes()
    ends = [0, 100, 512, 700, 1024, 1300, 2048, 2500]
    for end in ends:
        path.write_bytes(full[:end])
        with pytest.raises(UserError, match=r"000000\.tar"):
            list(read_examples(tmp_path, "train", "derain"))


def test_invalid_image_tars_are_refused(tmp_path):
    manifest = write(tmp_path, count=1)
    path = tmp_path / "train/derain" / manifest.shards[0]["file"]
    with tarfile.open(path) as tar:
        png = tar.extractfile("000000.input.png").read()
    errors = {
        r"a holds \['input.png'\]": [("a.input.png", png)],
        "a.target.png cannot be read": [("a.input.png", png), ("a.target.png", b"<html>")],
    }
    for message, members in errors.items():
        rewrite_tar(path, members)
        with pytest.raises(UserError, match=message):
            list(read_examples(tmp_path, "train", "derain"))
    write_examples(
        tmp_path / "b", "train", "derain", make_pairs(1, size=4), **SETTINGS | {"image_size": 4}
    )
    path.write_bytes((tmp_path / "b/train/derain/000000.tar").read_bytes())
    with pytest.raises(UserError, match=r"is \(4, 4, 3\), not \(8, 8, 3\)"):
        list(read_examples(tmp_path, "train", "derain"))


def test_duplicate_members_are_refused(tmp_path):
    write_ids(tmp_path, token_plan(3))
    members = [("0.ids.npy", npy(GOOD)), ("0.ids.npy", npy(GOOD))]
    rewrite_tar(tmp_path / "train/derain/000000.tar", members)
    with pytest.raises(UserError, match=r"000000\.tar is damaged \(0\.ids\.npy: duplicate"):
        list(read_tokens(tmp_path, "train", "derain"))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_refused(tmp_path, mode):
    """A small compressed tar may unpack to more than any memory holds."""
    write_ids(tmp_path, token_plan(3))
    with tarfile.open(tmp_path / "train/derain/000000.tar", mode) as tar:
        info = tarfile.TarInfo("0.ids.npy")
        info.size = len(npy(GOOD))
        tar.addfile(info, io.BytesIO(npy(GOOD)))
    with pytest.raises(UserError, match=r"000000\.tar is damaged"):
        list(read_tokens(tmp_path, "train", "derain"))


def test_sparse_members_are_refused(tmp_path):
    """A sparse member may claim a size that no memory holds."""
    write_ids(tmp_path, token_plan(3))
    info = tarfile.TarInfo("0.ids.npy")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"  # the size it claims
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path = tmp_path / "train/derain/000000.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(UserError, match="unexpected member '0.ids.npy'"):
        list(read_tokens(tmp_path, "train", "derain"))
