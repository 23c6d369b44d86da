"""Token files of other projects: what they look like, read and written line by line.

    InternLM (and DeLVM)  NAME.bin       a line {"tokens": [id, ...]} a sample
                          NAME.bin.meta  npy int64 (lines, 2): a line's offset in bytes, its tokens
    LVM                   NAME.jsonl     a line {"tokens": base64 of int32, little-endian} a sample

Files are not trusted: the first line that is not as declared is an error with its number. Memory
does not grow with a file.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from delvm.errors import UserError
from delvm.models.token_space import TokenSpace
from delvm.storage import atomic_path

# A line longer than this is no sample of any of the projects: 16 MiB, over a million tokens.
LONGEST_LINE = 1 << 24


# ---------------------------------------------------------------- reading


def read_internlm(path: Path, space: TokenSpace) -> Iterator[np.ndarray]:
    """The lines of a .bin file in order, ids (T,) int64 of pictures.

    The .bin.meta beside it is checked where there is one.

    Raises:
        UserError: the first line that is not as declared, by its number; or another .meta.
    """
    meta, offset, number = _read_meta(path), 0, 0
    for number, line in _lines(path):
        with _at(path, number):
            ids = _from_json(_tokens(line))
            if meta is not None:
                said = tuple(meta[number - 1].tolist()) if number <= len(meta) else None
                if said != (offset, len(ids)):
                    raise ValueError(
                        f"at {offset} with {len(ids)} tokens, {path.name}.meta says {said}: delete "
                        f"{path.name}.meta if the lines are right"
                    )
            ids = space.bare(ids)
        yield ids
        offset += len(line)
    if meta is not None and len(meta) != number:
        raise UserError(f"{path} has {number} lines, {path.name}.meta has {len(meta)}")


def read_lvm(path: Path, space: TokenSpace) -> Iterator[np.ndarray]:
    """The lines of a .jsonl file in order, ids (T,) int64 of pictures.

    Raises:
        UserError: the first line that is not as declared, by its number.
    """
    for number, line in _lines(path):
        with _at(path, number):
            ids = space.bare(_from_base64(_tokens(line)))
        yield ids


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end) of a file."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE):
                number += 1
                if not line.endswith(b"\n"):
                    short = len(line) < LONGEST_LINE
                    fault = "has no end: the file is cut short" if short else "is too long"
                    raise UserError(f"{path} line {number} {fault}")
                yield number, line
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@contextmanager
def _at(path: Path, number: int) -> Iterator[None]:
    """Say of a fault in which line it is."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} line {number}: {error}") from None


def _tokens(line: bytes) -> object:
    value = json.loads(line)
    if not isinstance(value, dict) or "tokens" not in value:
        raise ValueError('is no object with "tokens"')
    return value["tokens"]


def _from_json(value: object) -> np.ndarray:
    if not isinstance(value, list) or any(type(each) is not int for each in value):
        raise ValueError("tokens are no list of whole numbers")
    if any(not 0 <= each < 2**31 for each in value):
        raise ValueError("an id is outside [0, 2^31)")
    return np.array(value, np.int64)


def _from_base64(value: object) -> np.ndarray:
    try:
        raw = base64.b64decode(str(value).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"tokens are no base64: {error}") from None
    if not isinstance(value, str) or len(raw) % 4:
        raise ValueError(f"tokens of {len(raw)} bytes are no int32")
    return np.frombuffer(raw, "<i4").astype(np.int64)


def _read_meta(path: Path) -> np.ndarray | None:
    """The offsets and lengths beside a .bin, None where there are none."""
    meta = path.with_name(path.name + ".meta")
    if not meta.exists():
        return None
    try:
        with meta.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise UserError(f"{meta} cannot be read: {error}") from None
    if array.ndim != 2 or array.shape[1] != 2 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{meta} holds {array.dtype} {array.shape}, not int64 (lines, 2)")
    return array


# ---------------------------------------------------------------- writing


def write_internlm(path: Path, samples: Iterable[np.ndarray], space: TokenSpace) -> int:
    """Write ids (T,) of pictures a line, and the .meta beside; returns the lines."""
    rows: list[tuple[int, int]] = []
    offset = 0
    meta = path.with_name(path.name + ".meta")
    with atomic_path(meta) as meta_part, atomic_path(path) as part:
        with part.open("wb") as file:
            for sample in samples:
                ids = space.dressed(sample)
                line = json.dumps({"tokens": ids.tolist()}).encode() + b"\n"
                file.write(line)
                rows.append((offset, len(ids)))
                offset += len(line)
        with meta_part.open("wb") as file:
            np.save(file, np.array(rows, np.int64).reshape(-1, 2), allow_pickle=False)
    return len(rows)


def write_lvm(path: Path, samples: Iterable[np.ndarray], space: TokenSpace) -> int:
    """Write ids (T,) of pictures a line; returns the lines."""
    count = 0
    with atomic_path(path) as part, part.open("wb") as file:
        for sample in samples:
            text = base64.b64encode(space.dressed(sample).astype("<i4").tobytes()).decode()
            file.write(json.dumps({"tokens": text}).encode() + b"\n")
            count += 1
    return count
