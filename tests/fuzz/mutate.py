"""Seeded mutations of files: of bytes, JSON, tar headers, safetensors and checkpoints."""

import io
import json
import struct
import tarfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]

_BYTES = (
    b"\0",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\xff" * 8,
    b"\0" * 8,
    b"-1",
    b"1e999",
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "x" * 10_000, "\ud800", "../../etc/passwd", "\0", [], {}, [[]], [None],
    {"a": 1}, [1, 2, 3], ["a"], [1e400], {"": {}},
)  # fmt: skip
_TEXTS = ("[" * 100_000, '{"a":' * 100_000, "9" * 5_000, "1e999999", "\ufeff{}", "", "null", "0")


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    """Flip, overwrite, remove, repeat or truncate; one to four times."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not out:
            return bytes(rng.integers(0, 256, 16, np.uint8))
        # Headers are at the beginning, and decide most.
        end = len(out) if rng.random() < 0.6 else min(len(out), 512)
        at = int(rng.integers(end))
        length = int(rng.integers(1, 1 + min(64, len(out) - at)))
        match int(rng.integers(6)):
            case 0:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                piece = _BYTES[rng.integers(len(_BYTES))]
                out[at : at + len(piece)] = piece
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = out[at : at + length] * int(rng.integers(1, 4))
            case 4:
                out[at : at + length] = bytes(rng.integers(0, 256, length, np.uint8))
            case 5:
                del out[at:]
    return bytes(out)


def mutate_value(value: Any, rng: Rng) -> Any:
    """A JSON value with one or two of its parts replaced, removed, renamed or repeated."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.integers(1, 3)):
        holders = list(_holders(value))
        if not holders:
            return deepcopy(_VALUES[rng.integers(len(_VALUES))])
        holder, key = holders[rng.integers(len(holders))]
        match int(rng.integers(6)):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[f"{key}x"] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.append(holder[key])
            case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] = holder[key] * [-1, 0, 2, 1000, 10**6, 10**12, 0.5][rng.integers(7)]
            case _:
                holder[key] = deepcopy(_VALUES[rng.integers(len(_VALUES))])
    return value


def _holders(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of each part of a JSON value; of long lists the first parts."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack and len(found) < 2_000:
        each = stack.pop()
        keys = list(each) if isinstance(each, dict) else range(min(len(each), 20))
        for key in keys:
            found.append((each, key))
            if isinstance(each[key], dict | list):
                stack.append(each[key])
    return found


def mutate_json(data: bytes, rng: Rng) -> bytes:
    """A JSON file: by its values, by text that is hard to parse, or by its bytes."""
    choice = rng.random()
    if choice < 0.2:
        return mutate_bytes(data, rng)
    if choice < 0.3:
        return _TEXTS[rng.integers(len(_TEXTS))].encode()
    return json.dumps(mutate_value(json.loads(data), rng)).encode("utf-8", "surrogatepass")


def mutate_lines(data: bytes, rng: Rng) -> bytes:
    """A JSONL file: one of its lines."""
    lines = data.splitlines(keepends=True)
    if rng.random() < 0.2 or not lines:
        return mutate_bytes(data, rng)
    at = int(rng.integers(len(lines)))
    lines[at] = mutate_json(lines[at].strip(), rng) + b"\n"
    return b"".join(lines)


def mutate_tar(data: bytes, rng: Rng) -> bytes:
    """A tar: a field of one header with a valid checksum, or its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    out = bytearray(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        offsets = [info.offset for info in tar]
    at = offsets[rng.integers(len(offsets))]
    header = memoryview(out)[at : at + 512]
    match int(rng.integers(7)):
        case 0:  # a size in octal, far beyond the file
            header[124:136] = [b"77777777777\0", b"00077777777\0", b"00000000000\0"][
                rng.integers(3)
            ]
        case 1:  # in base 256: negative, huge
            size = [-1, -512, 2**40, 2**62, 2**90][rng.integers(5)]
            header[124:136] = (size & (2**96 - 1)).to_bytes(12, "big")
            header[124] |= 0x80
        case 2:
            header[156] = b"0123456789LKSxgVD\0"[rng.integers(18)]
        case 3:
            names = (
                b"../../x.png",
                b"/etc/x.png",
                b"a" * 99,
                b"\xff\xfe.png",
                b"",
                b".",
                b"a.b.c.d",
            )
            header[0:100] = names[rng.integers(len(names))].ljust(100, b"\0")
        case 4:
            field = int(rng.integers(0, 500))
            header[field : field + 4] = bytes(rng.integers(0, 256, 4, np.uint8))
        case 5:
            header[124:136] = bytes(rng.integers(32, 127, 12, np.uint8))
        case 6:
            header[257:265] = b"\0" * 8
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % (sum(header) & 0o777777)
    return bytes(out)


def mutate_safetensors(data: bytes, rng: Rng) -> bytes:
    """A safetensors file: its header, with the right length before it, or its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    header = mutate_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def mutate_checkpoint(data: bytes, rng: Rng) -> bytes:
    """A file of torch.save: one of its values, a tensor of another shape or type, or its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    value = torch.load(io.BytesIO(data), weights_only=True)
    holders: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        each = stack.pop()
        for key in list(each) if isinstance(each, dict) else range(len(each)):
            holders.append((each, key))
            if isinstance(each[key], dict | list):
                stack.append(each[key])
    # As many containers as tensors, of which there are many more.
    tensors = [pair for pair in holders if isinstance(pair[0][pair[1]], torch.Tensor)]
    others = [pair for pair in holders if not isinstance(pair[0][pair[1]], torch.Tensor)]
    chosen = tensors if tensors and rng.random() < 0.4 else others or tensors
    holder, key = chosen[rng.integers(len(chosen))]
    old = holder[key]
    tensor_values: tuple[Any, ...] = (torch.zeros(3), torch.zeros(0), torch.zeros(2, 2).bool(), 1)
    if isinstance(old, torch.Tensor):
        tensor_values += (old.double(), old[None], old.to(torch.complex64), old.to(torch.int8))
    match int(rng.integers(3)):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1:
            holder[key] = tensor_values[rng.integers(len(tensor_values))]
        case _:
            holder[key] = deepcopy(_VALUES[rng.integers(len(_VALUES))])
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def mutate_text(data: bytes, rng: Rng) -> bytes:
    """A text of lines and words (YAML, CSV): a word replaced, a line repeated, or its bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    lines = data.split(b"\n")
    at = int(rng.integers(len(lines)))
    words = (
        b"[" * 20_000, b"&a [*a, *a]", b"!!python/object:os.system x", b"- " * 5_000, b"9" * 5_000,
        b"nan", b"-inf", b"\t", b"{", b": : :", b"\xff\xfe", b"1e999", b'"', b",,,,",
    )  # fmt: skip
    match int(rng.integers(4)):
        case 0:
            lines.insert(at, lines[int(rng.integers(len(lines)))])
        case 1:
            del lines[at]
        case 2:
            head, colon, _ = lines[at].partition(b":")
            lines[at] = head + colon + b" " + words[rng.integers(len(words))]
        case 3:
            cells = lines[at].split(b",")
            cells[rng.integers(len(cells))] = words[rng.integers(len(words))]
            lines[at] = b",".join(cells)
    return b"\n".join(lines)
