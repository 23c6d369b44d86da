"""Token files of other projects, read and written line by line.

    InternLM (and DeLVM)  NAME.bin       a line {"tokens": [id, ...]} for each sample
                          NAME.bin.meta  npy int64 (lines, 2): byte offset and tokens of each line
    LVM                   NAME.jsonl     a line {"tokens": base64 of int32, little-endian} for each

A line is a sample, or several that end with eos or begin with bos, where these are declared. Empty
lines of a .jsonl file are skipped, as LVM's loader does. Files are untrusted: the first line that
is not as declared is an error with its number. Memory use does not grow with the file.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from delvm.errors import UserError
from delvm.models.token_space import TokenSpace
from delvm.storage import atomic_path, lfs_pointer_error
from delvm.untrusted import parse_npy

# 16 MiB, over a million tokens: a longer line is not a sample of any of these projects.
MAX_LINE_BYTES = 1 << 24


# ---------------------------------------------------------------- reading


def read_internlm(path: Path, space: TokenSpace) -> Iterator[npt.NDArray[np.int64]]:
    """The samples of a .bin file in order: codes (T,) int64, without special tokens.

    The .bin.meta is checked if there is one.

    Raises:
        UserError: a line is not as declared (the first one is named), or disagrees with the .meta.
    """
    meta, offset, number = _read_meta(path), 0, 0
    for number, line in _iter_lines(path):
        with _line_errors(path, number):
            ids = _from_json(_tokens(line))
            if meta is not None:
                recorded = tuple(meta[number - 1].tolist()) if number <= len(meta) else None
                if recorded != (offset, len(ids)):
                    raise ValueError(
                        f"offset and tokens ({offset}, {len(ids)}) != {recorded} "
                        f"({path.name}.meta): delete {path.name}.meta if the lines are right"
                    )
            documents = space.split_documents(ids)
        yield from documents
        offset += len(line)
    if meta is not None and len(meta) != number:
        raise UserError(f"{path} has {number} lines, {path.name}.meta has {len(meta)}")


def read_lvm(path: Path, space: TokenSpace) -> Iterator[npt.NDArray[np.int64]]:
    """The samples of a .jsonl file in order: codes (T,) int64, without special tokens.

    Raises:
        UserError: a line is not as declared; the first one is named.
    """
    for number, line in _iter_lines(path):
        if not line.strip():
            continue
        with _line_errors(path, number):
            documents = space.split_documents(_from_base64(_tokens(line)))
        yield from documents


def _iter_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, each with its number (from 1) and its newline, if it has one."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    raise UserError(f"{path} line {number} is too long")
                yield number, line
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def _line_errors(path: Path, number: int) -> Iterator[None]:
    """Add the file and the line's number to an error."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        pointer = lfs_pointer_error(path)
        raise UserError(pointer or f"{path} line {number}: {error}") from None


def _tokens(line: bytes) -> object:
    try:
        value = json.loads(line)
    except ValueError:
        if line.endswith(b"\n"):
            raise
        raise ValueError("the file is truncated") from None  # objects are complete or no JSON
    if not isinstance(value, dict) or "tokens" not in value:
        raise ValueError('not an object with "tokens"')
    return value["tokens"]


def _from_json(value: object) -> npt.NDArray[np.int64]:
    if not isinstance(value, list) or any(type(each) is not int for each in value):
        raise ValueError("tokens are not a list of integers")
    if any(not 0 <= each < 2**31 for each in value):
        raise ValueError("an id is outside [0, 2^31)")
    return np.array(value, np.int64)


def _from_base64(value: object) -> npt.NDArray[np.int64]:
    try:
        raw = base64.b64decode(str(value).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"tokens are not base64: {error}") from None
    if not isinstance(value, str) or len(raw) % 4:
        raise ValueError(f"tokens of {len(raw)} bytes are not int32")
    ids = np.frombuffer(raw, "<i4").astype(np.int64)
    # numpy's default type: the upper half of each id is 0. No image has 0 at every second position.
    if len(ids) >= 4 and len(ids) % 2 == 0 and ids.any() and not ids[1::2].any():
        raise ValueError(
            f"every second of {len(ids)} int32 is 0, so the ids are int64: write them as "
            'ids.astype("<i4")'
        )
    return ids


def _read_meta(path: Path) -> npt.NDArray[Any] | None:
    """The offsets and lengths in the .meta of a .bin file, None if there is none."""
    meta = meta_path(path)
    if not meta.exists():
        return None
    try:
        array = parse_npy(meta.read_bytes())
    except (ValueError, OSError) as error:
        raise UserError(f"{meta} cannot be read: {error}") from None
    if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{meta} holds {array.dtype} {array.shape}, not int64 (lines, 2)")
    return array


# ---------------------------------------------------------------- writing


def meta_path(path: Path) -> Path:
    """Where the .meta of a .bin file is."""
    return path.with_name(f"{path.name}.meta")


def is_complete(path: Path) -> bool:
    """Whether a file is there, and the .meta of a .bin file."""
    return path.exists() and (path.suffix != ".bin" or meta_path(path).exists())


def write_internlm(
    path: Path, samples: Iterable[npt.NDArray[np.integer]], space: TokenSpace
) -> int:
    """Write samples of codes (T,) as a .bin file, and its .meta; returns how many lines.

    Raises:
        UserError: an id is not a code of ``space``.
    """
    rows: list[tuple[int, int]] = []
    offset = 0
    meta = meta_path(path)
    with atomic_path(meta) as meta_tmp, atomic_path(path) as tmp:
        with tmp.open("wb") as file:
            for sample in samples:
                with _line_errors(path, len(rows) + 1):
                    ids = space.add_special_tokens(sample)
                line = json.dumps({"tokens": ids.tolist()}).encode() + b"\n"
                file.write(line)
                rows.append((offset, len(ids)))
                offset += len(line)
        with meta_tmp.open("wb") as file:
            np.save(file, np.array(rows, np.int64).reshape(-1, 2), allow_pickle=False)
        # Of an earlier file: with it, a job killed after the next line would leave a wrong one.
        meta.unlink(missing_ok=True)
    return len(rows)


def write_lvm(path: Path, samples: Iterable[npt.NDArray[np.integer]], space: TokenSpace) -> int:
    """Write samples of codes (T,) as a .jsonl file; returns how many lines.

    Raises:
        UserError: an id is not a code of ``space``.
    """
    count = 0
    with atomic_path(path) as tmp, tmp.open("wb") as file:
        for sample in samples:
            with _line_errors(path, count + 1):
                ids = space.add_special_tokens(sample)
            text = base64.b64encode(ids.astype("<i4").tobytes()).decode()
            file.write(json.dumps({"tokens": text}).encode() + b"\n")
            count += 1
    return count
